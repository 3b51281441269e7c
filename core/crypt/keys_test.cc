#include "core/crypt/keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "core/base/file.h"

namespace kapsule::crypt {
namespace {

using ::testing::HasSubstr;

std::string KeyFile(const std::string& name) { return TEST_SOURCE_DIR "/testdata/keys/" + name; }

class KeysTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(mkdtemp(folder_.data()), nullptr); }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }
  std::string Write(ByteSpan bytes) {
    EXPECT_TRUE(WriteFileAtomic(folder_ + "/key", bytes, 0600).ok());
    return folder_ + "/key";
  }
  std::string folder_ = "/tmp/kapsule-keys-XXXXXX";
};

TEST_F(KeysTest, EveryFormOfAKeyHasOneFingerprint) {
  const Secret password = Secret::CopyOf("pw1");
  const std::string rsa = Fingerprint(LoadPublicKey(KeyFile("rsa2048.pub.pem")).value());
  EXPECT_EQ(rsa.size(), 16u);
  EXPECT_EQ(Fingerprint(LoadPublicKey(KeyFile("rsa2048.pub.der")).value()), rsa);
  for (const char* name : {"rsa2048.pem", "rsa2048.pkcs1.pem"})
    EXPECT_EQ(Fingerprint(LoadPrivateKey(KeyFile(name)).value()), rsa) << name;
  for (const char* name : {"rsa2048.p8.enc.pem", "rsa2048.pkcs1.enc.pem"})
    EXPECT_EQ(Fingerprint(LoadPrivateKey(KeyFile(name), password).value()), rsa) << name;
  const std::string ec = Fingerprint(LoadPublicKey(KeyFile("ec256.pub.pem")).value());
  EXPECT_NE(ec, rsa);
  for (const char* name : {"ec256.pem", "ec256.sec1.pem"})
    EXPECT_EQ(Fingerprint(LoadPrivateKey(KeyFile(name)).value()), ec) << name;
  EXPECT_TRUE(LoadPublicKey(KeyFile("p7.crt.pem")).ok());
}

TEST_F(KeysTest, PasswordsAreAskedForAndChecked) {
  for (const char* name : {"rsa2048.p8.enc.pem", "rsa2048.pkcs1.enc.pem"}) {
    const absl::Status missing = LoadPrivateKey(KeyFile(name)).status();
    EXPECT_TRUE(absl::IsPermissionDenied(missing)) << missing;
    EXPECT_THAT(Message(missing), HasSubstr("no password"));
    const absl::Status wrong = LoadPrivateKey(KeyFile(name), Secret::CopyOf("pw2")).status();
    EXPECT_TRUE(absl::IsPermissionDenied(wrong)) << wrong;
  }
}

TEST_F(KeysTest, PrivateKeysAreNotTakenForPublicOnes) {
  const absl::Status pem = LoadPublicKey(KeyFile("rsa2048.pem")).status();
  EXPECT_TRUE(absl::IsInvalidArgument(pem));
  EXPECT_THAT(Message(pem), HasSubstr("private key"));
  EXPECT_TRUE(absl::IsInvalidArgument(LoadPrivateKey(KeyFile("rsa2048.pub.pem")).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(LoadPrivateKey(KeyFile("rsa2048.pub.der")).status()));
}

TEST_F(KeysTest, DerFormsOfPrivateKeysLoad) {
  const Key key = LoadPrivateKey(KeyFile("ec384.pem")).value();
  unsigned char* der = nullptr;
  const int size = i2d_PrivateKey(key.get(), &der);  // SEC1
  ASSERT_GT(size, 0);
  std::string bytes(reinterpret_cast<char*>(der), static_cast<size_t>(size));
  OPENSSL_free(der);
  EXPECT_EQ(Fingerprint(LoadPrivateKey(Write(AsBytes(bytes))).value()), Fingerprint(key));
  EXPECT_THAT(Message(LoadPublicKey(Write(AsBytes(bytes))).status()), HasSubstr("private key"));
  bytes.push_back('x');
  EXPECT_TRUE(absl::IsInvalidArgument(LoadPrivateKey(Write(AsBytes(bytes))).status()));
}

TEST_F(KeysTest, OtherFilesAreRefusedCleanly) {
  EXPECT_TRUE(absl::IsNotFound(LoadPrivateKey(folder_ + "/none").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(LoadPrivateKey(KeyFile("ec256.jwk")).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(LoadPrivateKey(Write({})).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(LoadPrivateKey(Write(Bytes(64 * 1024 + 1))).status()));
  ASSERT_EQ(mkfifo((folder_ + "/pipe").c_str(), 0600), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(LoadPrivateKey(folder_ + "/pipe").status()));
  const std::string pem = ReadFile(KeyFile("rsa2048.pub.pem"), 4096).value();
  for (size_t size = 0; size + 25 < pem.size(); ++size)
    EXPECT_TRUE(absl::IsInvalidArgument(ParsePublicKey(pem.substr(0, size), "k").status())) << size;
}

TEST_F(KeysTest, WeakAndForeignKeysAreRefused) {
  const auto refused = [](EVP_PKEY* raw) {
    const Key key(raw, EvpPkeyFree());
    return absl::IsInvalidArgument(ParsePublicKey(PublicPem(key), "k").status());
  };
  EXPECT_TRUE(refused(EVP_RSA_gen(1024)));
  EXPECT_TRUE(refused(EVP_EC_gen("secp256k1")));
  EXPECT_TRUE(refused(EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519")));
}

TEST_F(KeysTest, GeneratedKeysLoadAgain) {
  for (const std::string& type : KeyTypes()) {
    if (type == "rsa-4096") continue;  // slow, and the same code
    const Key key = GenerateKey(type).value();
    EXPECT_EQ(Fingerprint(LoadPrivateKey(Write(PrivatePem(key).bytes())).value()),
              Fingerprint(key));
    EXPECT_EQ(Fingerprint(ParsePublicKey(PublicPem(key), type).value()), Fingerprint(key));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(GenerateKey("dsa").status()));
}

}  // namespace
}  // namespace kapsule::crypt
