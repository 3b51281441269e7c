#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/crypt/hmac.h"
#include "core/crypt/keywrap_jwe.h"

namespace kapsule::crypt {
namespace {

using ::testing::HasSubstr;

constexpr char kData[] = TEST_SOURCE_DIR "/testdata/";

std::vector<Key> LoadKeys(const std::vector<std::string>& names) {
  std::vector<Key> keys;
  for (const std::string& name : names)
    keys.push_back(LoadPrivateKey(std::string(kData) + "keys/" + name).value());
  return keys;
}

const Json& Vectors() {
  static const auto* const vectors = new Json(
      ParseJson(ReadFile(std::string(kData) + "jwe_vectors.json", 1 << 20).value(), 1 << 20)
          .value());
  return *vectors;
}

const Json& Vector(const std::string& name) {
  for (const Json& vector : Vectors())
    if (vector["name"] == name) return vector;
  ADD_FAILURE() << "no vector " << name;
  return Vectors()[0];
}

oci::Annotations AnnotationsOf(const Json& vector) {
  return vector["annotations"].get<oci::Annotations>();
}

// The digest of the vector's blob, decrypted; sets whether its HMAC fits.
std::string DecryptBlob(const Json& vector, const PrivateOptions& options, bool* hmac_fits) {
  std::string blob =
      ReadFile(std::string(kData) + "blobs/" + vector["blob"].get<std::string>(), 1 << 20).value();
  const oci::Annotations annotations = AnnotationsOf(vector);
  const PublicOptions public_options =
      PublicOptions::Parse(DecodeBase64(annotations.at(oci::kPublicOptionsAnnotation)).value())
          .value();
  Hmac hmac = Hmac::Create(options.key.key).value();
  hmac.Update(AsBytes(blob));
  *hmac_fits = hmac.Finish() == public_options.hmac;
  LayerCipher cipher = LayerCipher::Create(options.key).value();
  EXPECT_TRUE(cipher.Apply(0, AsBytes(blob), std::as_writable_bytes(std::span(blob))).ok());
  return oci::Digest::Of(AsBytes(blob)).hex();
}

TEST(UnwrapLayerTest, OpensWhatStockToolsWroteWithEachKey) {
  int opened = 0;
  for (const Json& vector : Vectors()) {
    if (!vector.contains("private_options")) continue;
    for (const Json& name : vector["keys"]) {
      const absl::StatusOr<PrivateOptions> options =
          UnwrapLayer(AnnotationsOf(vector), LoadKeys({name.get<std::string>()}));
      ASSERT_TRUE(options.ok()) << vector["name"] << options.status();
      const PrivateOptions expected =
          PrivateOptions::Parse(vector["private_options"].get<std::string>()).value();
      EXPECT_TRUE(options->key.key.Equals(expected.key.key.bytes()));
      EXPECT_TRUE(options->key.nonce.Equals(expected.key.nonce.bytes()));
      EXPECT_EQ(options->digest, expected.digest);
      ++opened;
    }
  }
  EXPECT_GE(opened, 20);
}

TEST(UnwrapLayerTest, CraftedAnnotationsGetTheirVerdicts) {
  int seen = 0;
  for (const Json& vector : Vectors()) {
    if (!vector.contains("verdict") || vector.contains("private_options")) continue;
    ++seen;
    const absl::StatusOr<PrivateOptions> options =
        UnwrapLayer(AnnotationsOf(vector), LoadKeys({"rsa2048.pem"}));
    if (vector["verdict"] == "invalid") {
      EXPECT_TRUE(absl::IsInvalidArgument(options.status())) << vector["name"] << options.status();
      continue;
    }
    ASSERT_TRUE(options.ok()) << vector["name"] << options.status();
    bool hmac_fits = false;
    const std::string digest = DecryptBlob(vector, *options, &hmac_fits);
    EXPECT_EQ(hmac_fits, vector["hmac"] == "fits") << vector["name"];
    EXPECT_EQ(digest == vector["plaintext_sha256"], hmac_fits) << vector["name"];
  }
  EXPECT_EQ(seen, 19);
}

TEST(UnwrapLayerTest, TheCounterOfCtrWrapWrapsInsideTheBlob) {
  const Json& vector = Vector("crafted-ctrwrap");
  const PrivateOptions options =
      UnwrapLayer(AnnotationsOf(vector), LoadKeys({"rsa2048.pem"})).value();
  EXPECT_EQ(ToHex(options.key.nonce.bytes()), "fffffffffffffffffffffffffffffff0");
}

TEST(UnwrapLayerTest, WhatWasWrappedComesBackForEachRecipient) {
  PrivateOptions options;
  options.key = LayerKey::Generate().value();
  options.digest = oci::Digest::Of({}).text();
  options.index = oci::IndexRef{1, 65536, 256, oci::Digest::Of(AsBytes("header"))};
  const std::vector<Key> recipients = LoadKeys({"rsa2048.pem", "ec521.pem"});
  const oci::Annotations annotations = WrapLayer(options, PublicOptions{}, recipients).value();
  EXPECT_EQ(annotations.size(), 2u);
  for (const Key& key : recipients) {
    const PrivateOptions unwrapped = UnwrapLayer(annotations, {&key, 1}).value();
    EXPECT_TRUE(unwrapped.key.key.Equals(options.key.key.bytes()));
    EXPECT_EQ(unwrapped.index, options.index);
  }
}

TEST(UnwrapLayerTest, NotFoundNamesTheSchemesThatTheLayerOffers) {
  oci::Annotations annotations = AnnotationsOf(Vector("pkcs7-plus-jwe"));
  const absl::Status other_key = UnwrapLayer(annotations, LoadKeys({"ec256.pem"})).status();
  EXPECT_TRUE(absl::IsNotFound(other_key));
  EXPECT_THAT(Message(other_key), HasSubstr("jwe,pkcs7"));
  annotations.erase(oci::kJweAnnotation);
  annotations["org.opencontainers.image.enc.keys.provider.a\nb"] = "AA==";
  const absl::Status no_jwe = UnwrapLayer(annotations, LoadKeys({"ec256.pem"})).status();
  EXPECT_TRUE(absl::IsNotFound(no_jwe));
  EXPECT_THAT(Message(no_jwe), HasSubstr("pkcs7,provider.a_b"));
  EXPECT_EQ(OfferedSchemes({}), "none");
}

TEST(UnwrapLayerTest, ItemsThatAreNoJweArePassedOverButAllOfThemAreInvalid) {
  oci::Annotations annotations = AnnotationsOf(Vector("jwe-ec256-gzip"));
  const std::string good = annotations[oci::kJweAnnotation];
  const std::vector<Key> keys = LoadKeys({"ec256.pem"});
  const auto with = [&](const std::string& list) {
    annotations[oci::kJweAnnotation] = list;
    return UnwrapLayer(annotations, keys).status();
  };
  EXPECT_TRUE(with("e30=," + good).ok());
  EXPECT_TRUE(with(good + ",e30=").ok());
  EXPECT_TRUE(with(good + ",").ok());
  EXPECT_TRUE(absl::IsInvalidArgument(with("e30=")));
  EXPECT_TRUE(absl::IsInvalidArgument(with("")));
  EXPECT_TRUE(absl::IsInvalidArgument(with(good + ",%%")));
  std::string many;
  for (int i = 0; i < 31; ++i) many += "e30=,";
  EXPECT_TRUE(with(many + good).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(with("e30=," + many + good)));
  EXPECT_TRUE(absl::IsInvalidArgument(with(std::string(100 * 1024, 'A'))));
}

// The annotation of a layer for `recipients`, each its own item where `apart`.
oci::Annotations WrapFor(const std::vector<Key>& recipients, bool apart) {
  PrivateOptions options;
  options.key = LayerKey::Generate().value();
  if (!apart) return WrapLayer(options, PublicOptions{}, recipients).value();
  oci::Annotations annotations;
  std::string list;
  for (const Key& recipient : recipients) {
    annotations = WrapLayer(options, PublicOptions{}, {&recipient, 1}).value();
    list += (list.empty() ? "" : ",") + annotations[oci::kJweAnnotation];
  }
  annotations[oci::kJweAnnotation] = list;
  return annotations;
}

TEST(UnwrapLayerTest, AnAnnotationHasAtMost32RecipientsInAll) {
  const Key key = LoadKeys({"ec256.pem"})[0];
  const auto unwrap = [&](size_t recipients) {
    oci::Annotations annotations = WrapFor(std::vector<Key>(recipients - 16, key), false);
    annotations[oci::kJweAnnotation] +=
        "," + WrapFor(std::vector<Key>(16, key), false)[oci::kJweAnnotation];
    return UnwrapLayer(annotations, {&key, 1}).status();
  };
  EXPECT_TRUE(unwrap(31).ok());
  EXPECT_TRUE(unwrap(32).ok());
  const absl::Status more = unwrap(33);
  EXPECT_TRUE(absl::IsInvalidArgument(more));
  EXPECT_THAT(Message(more), HasSubstr("more than 32 recipients"));
}

// `count` keys of which the last is `last`, the others are `other`.
std::vector<Key> KeysEndingWith(const Key& last, const Key& other, int count) {
  std::vector<Key> keys(static_cast<size_t>(count), other);
  keys.back() = last;
  return keys;
}

TEST(UnwrapLayerTest, TheBudgetOfPrivateKeyOperationsHoldsForOneRecipientAndMany) {
  struct Case {
    const char* key;
    int cost;
  };
  for (const auto& [name, cost] : {Case{"rsa2048.pem", 1}, Case{"ec256.pem", 1},
                                   Case{"ec521.pem", 4}, Case{"rsa4096.pem", 8}}) {
    const std::string type = std::string(name).starts_with("rsa")
                                 ? "rsa-" + std::string(name).substr(3, 4)
                                 : "ec-p" + std::string(name).substr(2, 3);
    const Key key = LoadKeys({name})[0];
    const Key other = GenerateKey(type).value();
    const oci::Annotations one = WrapFor({key}, false);
    const int most = kUnwrapBudget / cost;
    for (const int count : {most - 1, most}) {
      size_t opened_by = 0;
      const std::vector<Key> keys = KeysEndingWith(key, other, count);
      EXPECT_TRUE(UnwrapLayer(one, keys, &opened_by).ok()) << name;
      EXPECT_EQ(opened_by, keys.size() - 1);
    }
    const absl::Status more = UnwrapLayer(one, KeysEndingWith(key, other, most + 1)).status();
    EXPECT_TRUE(absl::IsInvalidArgument(more)) << name << more;
    EXPECT_THAT(Message(more), HasSubstr("fewer recipients"));
    // All recipients together, of one item or of many.
    for (const bool apart : {false, true}) {
      const oci::Annotations many = WrapFor(std::vector<Key>(32, key), apart);
      const std::vector<Key> strangers(static_cast<size_t>(most / 32), other);
      EXPECT_TRUE(absl::IsNotFound(UnwrapLayer(many, strangers).status())) << name;
      const std::vector<Key> one_more(strangers.size() + 1, other);
      EXPECT_TRUE(absl::IsInvalidArgument(UnwrapLayer(many, one_more).status())) << name;
    }
  }
}

TEST(UnwrapLayerTest, KeysOfAnotherTypeLengthOrCurveCostNothing) {
  const oci::Annotations annotations = WrapFor(LoadKeys({"rsa2048.pem"}), false);
  std::vector<Key> keys;
  for (const Key& other : LoadKeys({"rsa4096.pem", "ec256.pem", "ec384.pem"}))
    keys.insert(keys.end(), kUnwrapBudget, other);
  keys.push_back(LoadKeys({"rsa2048.pem"})[0]);
  EXPECT_TRUE(UnwrapLayer(annotations, keys).ok());
}

TEST(UnwrapLayerTest, AKeyThatTheRecipientNamesIsTriedFirst) {
  const Key key = LoadKeys({"ec256.pem"})[0];
  const Key other = GenerateKey("ec-p256").value();
  const std::vector<Key> keys = KeysEndingWith(key, other, kUnwrapBudget + 1);
  oci::Annotations annotations = WrapFor({other, key}, false);
  Json jwe = ParseJson(DecodeBase64(annotations[oci::kJweAnnotation]).value(), 1 << 20).value();
  jwe["recipients"].erase(0);
  const auto unwrap = [&](const Json& kid) {
    jwe["recipients"][0]["header"]["kid"] = kid;
    annotations[oci::kJweAnnotation] = EncodeBase64(AsBytes(DumpJson(jwe)));
    return UnwrapLayer(annotations, keys).status();
  };
  EXPECT_TRUE(unwrap(Fingerprint(key)).ok());
  for (const Json& kid : {Json(Fingerprint(other)), Json("a"), Json(7), Json(nullptr)})
    EXPECT_TRUE(absl::IsInvalidArgument(unwrap(kid))) << kid;
}

}  // namespace
}  // namespace kapsule::crypt
