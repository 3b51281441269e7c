#include "core/crypt/wide_aes.h"

#include <gtest/gtest.h>

#include <random>

#include "core/crypt/evp.h"

namespace kapsule::crypt {
namespace {

Bytes RandomBytes(std::mt19937& random, size_t size) {
  Bytes bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

Bytes OpensslCtr(ByteSpan key, ByteSpan counter, ByteSpan in) {
  const CipherContext context(EVP_CIPHER_CTX_new());
  Bytes out(in.size());
  int n = 0;
  EXPECT_EQ(EVP_EncryptInit_ex2(context.get(), Aes256Ctr(), U8(key), U8(counter), nullptr), 1);
  EXPECT_EQ(EVP_EncryptUpdate(context.get(), U8(out), &n, U8(in), static_cast<int>(in.size())), 1);
  return out;
}

WideGmac::Tag OpensslGmac(ByteSpan key, const WideGmac::Iv& iv, ByteSpan bytes) {
  const CipherContext context(EVP_CIPHER_CTX_new());
  WideGmac::Tag tag;
  int n = 0;
  EXPECT_EQ(EVP_EncryptInit_ex2(context.get(), AesGcm(32), U8(key), U8(iv), nullptr), 1);
  EXPECT_EQ(
      EVP_EncryptUpdate(context.get(), nullptr, &n, U8(bytes), static_cast<int>(bytes.size())), 1);
  EXPECT_EQ(EVP_EncryptFinal_ex(context.get(), U8(tag), &n), 1);
  EXPECT_EQ(EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_GET_TAG, 16, tag.data()), 1);
  return tag;
}

class WideAesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasWideAes()) GTEST_SKIP() << "this processor has no VAES with AVX-512";
  }
  std::mt19937 random_{7};
};

TEST_F(WideAesTest, CtrIsThatOfOpensslForEveryLengthAndAlignment) {
  for (size_t size = 0; size <= 1100; ++size) {
    const Bytes key = RandomBytes(random_, 32), bytes = RandomBytes(random_, size + 64);
    Bytes counter = RandomBytes(random_, 16);
    if (size % 2 == 0) std::fill(counter.begin() + 11, counter.end(), std::byte{0xff});
    const ByteSpan in = ByteSpan(bytes).subspan(size % 64, size);
    Bytes room(size + 64);
    const MutableByteSpan out = MutableByteSpan(room).subspan(size * 7 % 64, size);
    WideCtr(key).Apply(LoadBe64(counter.data()), LoadBe64(counter.data() + 8), in, out);
    ASSERT_EQ(ToHex(out), ToHex(OpensslCtr(key, counter, in))) << size;
  }
}

TEST_F(WideAesTest, CtrWorksInPlace) {
  const Bytes key = RandomBytes(random_, 32), counter(16);
  Bytes bytes = RandomBytes(random_, 65536 + 5);
  const Bytes expected = OpensslCtr(key, counter, bytes);
  WideCtr(key).Apply(0, 0, bytes, bytes);
  EXPECT_EQ(bytes, expected);
}

TEST_F(WideAesTest, CtrWritesNothingBeyondTheEnd) {
  const Bytes key(32);
  Bytes in(77), out(200, std::byte{0xaa});
  WideCtr(key).Apply(1, 2, in, MutableByteSpan(out).first(77));
  EXPECT_EQ(Bytes(out.begin() + 77, out.end()), Bytes(123, std::byte{0xaa}));
}

TEST_F(WideAesTest, GmacIsThatOfOpensslForEveryLength) {
  for (size_t size = 0; size <= 1100; ++size) {
    const Bytes key = RandomBytes(random_, 32), bytes = RandomBytes(random_, size);
    WideGmac::Iv iv;
    for (std::byte& byte : iv) byte = static_cast<std::byte>(random_());
    ASSERT_EQ(ToHex(WideGmac(key).TagOf(iv, bytes)), ToHex(OpensslGmac(key, iv, bytes))) << size;
  }
}

TEST_F(WideAesTest, GmacOfAMebibyteIsThatOfOpenssl) {
  const Bytes key = RandomBytes(random_, 32), bytes = RandomBytes(random_, 1 << 20);
  EXPECT_EQ(ToHex(WideGmac(key).TagOf({}, bytes)), ToHex(OpensslGmac(key, {}, bytes)));
}

// NIST SP 800-38A, F.5.5.
TEST_F(WideAesTest, CtrOfThePublishedExample) {
  const std::string key =
      FromHex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4").value();
  const std::string in =
      FromHex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51").value();
  Bytes out(in.size());
  WideCtr(AsBytes(key)).Apply(0xf0f1f2f3f4f5f6f7, 0xf8f9fafbfcfdfeff, AsBytes(in), out);
  EXPECT_EQ(ToHex(out), "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5");
}

}  // namespace
}  // namespace kapsule::crypt
