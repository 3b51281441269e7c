// Against the real registry.
#include "core/registry/repository.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstdio>

#include "core/registry/test_registry.h"

namespace kapsule::registry {
namespace {

using ::testing::HasSubstr;
using Access = TestRegistry::Access;

std::string Pattern(size_t size) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 131 + i / 251);
  return text;
}

class RepositoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    unsetenv("REGISTRY_AUTH_FILE");
    setenv("DOCKER_CONFIG", "/nonexistent", 1);
  }
  void StartRegistry(Access access = Access::kOpen) {
    auto registry = TestRegistry::Start(access);
    ASSERT_TRUE(registry.ok()) << registry.status();
    registry_ = *std::move(registry);
  }
  std::unique_ptr<Repository> Open(const std::string& name = "acme/tiny:enc",
                                   Options options = {}) {
    options.insecure = true;
    options.retry.first_delay = std::chrono::milliseconds(20);
    return std::make_unique<Repository>(
        oci::Reference::Parse(registry_->host() + "/" + name).value(), options);
  }

  static oci::Descriptor Describe(const std::string& content, const char* type) {
    return {type, oci::Digest::Of(AsBytes(content)), content.size(), {}, "", ""};
  }

  static absl::Status Push(Repository& repository, const std::string& content, bool known_size) {
    ASSIGN_OR_RETURN(auto upload, repository.StartBlob(known_size ? std::optional(content.size())
                                                                  : std::nullopt));
    for (size_t at = 0; at < content.size(); at += 300'000)
      RETURN_IF_ERROR(upload->Write(AsBytes(std::string_view(content).substr(at, 300'000))));
    return upload->Commit(oci::Digest::Of(AsBytes(content)), content.size());
  }

  static absl::StatusOr<std::string> Pull(Repository& repository, const oci::Descriptor& blob) {
    std::string content;
    RETURN_IF_ERROR(repository.ReadBlob(blob, [&](ByteSpan piece) {
      content += AsText(piece);
      return absl::OkStatus();
    }));
    return content;
  }

  // Pushes an image of one layer; returns its manifest.
  static std::string PushImage(Repository& repository, const std::string& layer) {
    const std::string config = R"({"architecture":"amd64","os":"linux","config":{},"rootfs":)"
                               R"({"type":"layers","diff_ids":[")" +
                               oci::Digest::Of(AsBytes(layer)).text() + R"("]}})";
    EXPECT_TRUE(Push(repository, layer, false).ok());
    EXPECT_TRUE(Push(repository, config, true).ok());
    oci::Manifest manifest;
    manifest.config = Describe(config, oci::kConfigType);
    manifest.layers = {Describe(layer, oci::kLayerTarType)};
    const std::string bytes = oci::SerializeManifest(manifest);
    const absl::Status put = repository.PutManifest(bytes, oci::kManifestType);
    EXPECT_TRUE(put.ok()) << put;
    return bytes;
  }

  std::unique_ptr<TestRegistry> registry_;
};

TEST_F(RepositoryTest, BlobsOfEverySizeComeBackWhole) {
  StartRegistry();
  auto repository = Open();
  for (const size_t size : {0, 1, 1 << 20, 5'000'001}) {
    for (const bool known : {false, true}) {
      const std::string content = Pattern(size) + (known ? "k" : "u");
      const absl::Status pushed = Push(*repository, content, known);
      ASSERT_TRUE(pushed.ok()) << pushed;
      const oci::Descriptor blob = Describe(content, oci::kLayerTarType);
      EXPECT_TRUE(repository->HasBlob(blob.digest, blob.size).value());
      const auto pulled = Pull(*repository, blob);
      ASSERT_TRUE(pulled.ok()) << pulled.status();
      EXPECT_TRUE(*pulled == content);
    }
  }
  EXPECT_TRUE(Push(*repository, "", false).ok());
  EXPECT_EQ(registry_->OpenUploads("acme/tiny"), 0u);
}

TEST_F(RepositoryTest, SkopeoReadsWhatWePushed) {
  StartRegistry();
  PushImage(*Open(), Pattern(70'000));
  const std::string command =
      "skopeo inspect --tls-verify=false docker://" + registry_->host() + "/acme/tiny:enc 2>&1";
  FILE* pipe = popen(command.c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  std::array<char, 8192> text{};
  const size_t n = fread(text.data(), 1, text.size(), pipe);
  EXPECT_EQ(pclose(pipe), 0) << std::string(text.data(), n);
  EXPECT_THAT(std::string(text.data(), n),
              HasSubstr(oci::Digest::Of(AsBytes(Pattern(70'000))).text()));
}

TEST_F(RepositoryTest, ManifestsComeBackByTagAndByDigest) {
  StartRegistry();
  const std::string bytes = PushImage(*Open(), "layer");
  const auto by_tag = Open()->GetManifest(std::nullopt).value();
  EXPECT_EQ(by_tag.bytes, bytes);
  EXPECT_EQ(by_tag.media_type, oci::kManifestType);
  const oci::Digest digest = oci::Digest::Of(AsBytes(bytes));
  EXPECT_EQ(Open("acme/tiny")->GetManifest(digest)->bytes, bytes);
  EXPECT_EQ(Open("acme/tiny@" + digest.text())->GetManifest(std::nullopt)->bytes, bytes);
}

TEST_F(RepositoryTest, AManifestGoesUnderItsOwnDigestOnly) {
  StartRegistry();
  const std::string bytes = PushImage(*Open(), "layer");
  const std::string digest = oci::Digest::Of(AsBytes(bytes)).text();
  EXPECT_TRUE(Open("acme/tiny@" + digest)->PutManifest(bytes, oci::kManifestType).ok());
  EXPECT_EQ(Open("acme/tiny@" + digest)->PutManifest(bytes + " ", oci::kManifestType).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(RepositoryTest, WhatIsThereIsFound) {
  StartRegistry();
  auto repository = Open();
  const oci::Descriptor blob = Describe("layer", oci::kLayerTarType);
  EXPECT_FALSE(repository->HasBlob(blob.digest, blob.size).value());
  ASSERT_TRUE(Push(*repository, "layer", true).ok());
  EXPECT_TRUE(repository->HasBlob(blob.digest, blob.size).value());
  EXPECT_FALSE(repository->HasBlob(blob.digest, blob.size + 1).value());
  EXPECT_TRUE(Push(*repository, "layer", true).ok());
}

TEST_F(RepositoryTest, WhatIsMissingIsNotFound) {
  StartRegistry();
  const auto manifest = Open()->GetManifest(std::nullopt);
  EXPECT_EQ(manifest.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(manifest.status()),
              HasSubstr("pull " + registry_->host() + "/acme/tiny:enc: registry answered 404: "));
  EXPECT_EQ(Pull(*Open(), Describe("none", oci::kLayerTarType)).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(RepositoryTest, AWrongDigestIsDataLossAndLeavesNothing) {
  StartRegistry();
  auto repository = Open();
  {
    auto upload = repository->StartBlob(std::nullopt).value();
    ASSERT_TRUE(upload->Write(AsBytes("content")).ok());
    const absl::Status committed = upload->Commit(oci::Digest::Of(AsBytes("other")), 7);
    EXPECT_EQ(committed.code(), absl::StatusCode::kDataLoss) << committed;
  }
  {
    auto upload = repository->StartBlob(std::nullopt).value();
    ASSERT_TRUE(upload->Write(AsBytes("content")).ok());
    EXPECT_EQ(upload->Commit(oci::Digest::Of(AsBytes("content")), 6).code(),
              absl::StatusCode::kDataLoss);
  }
  EXPECT_EQ(registry_->OpenUploads("acme/tiny"), 0u);
}

TEST_F(RepositoryTest, ACancelledUploadLeavesNothing) {
  StartRegistry();
  auto repository = Open();
  for (const size_t written : {size_t{0}, size_t{10}, size_t{8} << 20}) {
    for (const bool known : {false, true}) {
      auto upload =
          repository->StartBlob(known ? std::optional(uint64_t{64} << 20) : std::nullopt).value();
      EXPECT_EQ(registry_->OpenUploads("acme/tiny"), 1u);
      ASSERT_TRUE(upload->Write(AsBytes(Pattern(written))).ok());
      upload.reset();
      EXPECT_EQ(registry_->OpenUploads("acme/tiny"), 0u) << written << " " << known;
    }
  }
}

TEST_F(RepositoryTest, ABlobIsTakenOverFromAnotherRepository) {
  StartRegistry();
  ASSERT_TRUE(Push(*Open("base/model"), "layer", true).ok());
  auto repository = Open();
  const oci::Descriptor blob = Describe("layer", oci::kLayerTarType);
  EXPECT_TRUE(repository->MountBlob(blob.digest, "base/model").value());
  EXPECT_EQ(Pull(*repository, blob).value(), "layer");
  EXPECT_FALSE(repository->MountBlob(oci::Digest::Of(AsBytes("none")), "base/model").value());
  EXPECT_EQ(registry_->OpenUploads("acme/tiny"), 0u);
}

TEST_F(RepositoryTest, LogsInWithAPassword) {
  StartRegistry(Access::kPassword);
  Options options;
  options.username = TestRegistry::kUser;
  options.password = TestRegistry::kPassword;
  const std::string bytes = PushImage(*Open("acme/tiny:enc", options), Pattern(3 << 20));
  EXPECT_EQ(Open("acme/tiny:enc", options)->GetManifest(std::nullopt)->bytes, bytes);
}

TEST_F(RepositoryTest, WithoutAPasswordItSaysHowToLogIn) {
  StartRegistry(Access::kPassword);
  const auto upload = Open()->StartBlob(std::nullopt);
  EXPECT_EQ(upload.status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(Message(upload.status()),
            "push " + registry_->host() +
                "/acme/tiny:enc: registry answered 401: UNAUTHORIZED: authentication required: "
                "log in with --username/--password or docker login");
}

}  // namespace
}  // namespace kapsule::registry
