#include "core/image/builder.h"

#include <absl/time/clock.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "core/archive/index.h"
#include "core/archive/toc.h"
#include "core/crypt/keywrap_jwe.h"
#include "core/image/memory_store.h"

namespace kapsule::image {
namespace {
namespace fs = std::filesystem;
using testing::HasSubstr;

class Quiet final : public Progress {
 public:
  void StartLayer(size_t number, size_t count, const std::string& title, uint64_t size) override {
    titles.push_back(fmt::format("{}/{} {}", number, count, title));
    expected = size;
    written = 0;
  }
  void Advance(uint64_t bytes) override { written += bytes; }
  void FinishLayer() override { EXPECT_EQ(written, expected); }

  std::vector<std::string> titles;
  uint64_t expected = 0, written = 0;
};

class BuilderTest : public testing::Test {
 protected:
  BuilderTest() {
    std::string name = "/tmp/kapsule-builder-XXXXXX";
    folder_ = mkdtemp(name.data());
    plan_.directories = {"kapsule", "models"};
    plan_.public_files = {{.path = "kapsule/model.json", .links = {}, .content = "{}"}};
    plan_.environment = {"OLLAMA_MODELS=/ollama/models"};
    plan_.facts = {
        .name = "tiny", .format = "gguf", .architecture = "llama", .quantization = "Q4_K_M"};
    plan_.fixed_files = {
        {.path = "models/tiny/config.json", .links = {"hf/hub/x/config.json"}, .content = "{}"},
        {.path = "models/tiny/empty", .links = {}, .content = ""}};
    AddWeight("model.gguf", std::string(2'500'000, 'w'));
    AddWeight("mmproj.gguf", "small projector");
  }
  ~BuilderTest() override { fs::remove_all(folder_); }

  void AddWeight(const std::string& name, const std::string& content) {
    std::ofstream(folder_ / name) << content;
    model::PlannedWeight weight;
    weight.file.source = folder_ / name;
    weight.file.name = name;
    weight.file.size = content.size();
    weight.path = "models/tiny/" + name;
    weight.links = {"hf/hub/x/" + name};
    weight.ollama_blob = true;
    plan_.weights.push_back(weight);
  }

  absl::StatusOr<BuiltImage> Run(MemoryStore& store, const BuildOptions& options = {}) {
    Quiet progress;
    auto image = Build(plan_, options, store, progress);
    EXPECT_EQ(store.uploads, 0);
    EXPECT_TRUE(store.digests_agree);
    titles_ = progress.titles;
    return image;
  }

  fs::path folder_;
  model::Plan plan_;
  std::vector<std::string> titles_;
};

TEST_F(BuilderTest, LayersStandBottomToTopWithTheirKinds) {
  MemoryStore store;
  const auto image = Run(store);
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(titles_, (std::vector<std::string>{"1/4 skeleton", "2/4 model.gguf", "3/4 mmproj.gguf",
                                               "4/4 config"}));
  EXPECT_EQ(image->digest, oci::Digest::Of(AsBytes(store.manifest)));
  const auto manifest = oci::ParseManifest(store.manifest);
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->artifact_type, "application/vnd.kapsule.model.v1+json");
  ASSERT_EQ(manifest->layers.size(), 4u);
  uint64_t total = store.manifest.size() + manifest->config.size;
  std::vector<oci::Digest> diff_ids;
  for (const oci::Descriptor& layer : manifest->layers) {
    total += layer.size;
    EXPECT_EQ(store.blobs.at(layer.digest).size(), layer.size);
    EXPECT_EQ(layer.media_type, oci::kLayerTarType);
    diff_ids.push_back(layer.digest);  // plain
  }
  EXPECT_EQ(image->size, total);
  EXPECT_EQ(*oci::ParseDiffIds(store.blobs.at(manifest->config.digest)), diff_ids);
}

TEST_F(BuilderTest, AWeightHasOneFileAndAHardLinkForEachOtherName) {
  MemoryStore store;
  const auto image = Run(store);
  ASSERT_TRUE(image.ok()) << image.status();
  const oci::Descriptor& layer = image->layers[1].descriptor;
  const std::string& blob = store.blobs.at(layer.digest);
  const auto ref = *oci::IndexRef::FromJson(layer.annotations.at(oci::kIndexAnnotation));
  const auto header =
      archive::IndexHeader::Decode(AsBytes(std::string_view(blob).substr(ref.offset, ref.length)));
  ASSERT_TRUE(header.ok()) << header.status();
  const auto toc = archive::ParseToc(
      AsBytes(std::string_view(blob).substr(header->tar_length, header->toc_length)),
      header->tar_length);
  ASSERT_TRUE(toc.ok()) << toc.status();
  const std::string content(2'500'000, 'w');
  const oci::Digest digest = oci::Digest::Of(AsBytes(content));
  std::map<std::string, archive::TocEntry> entries;
  for (const auto& entry : toc->entries) entries[entry.path] = entry;
  const archive::TocEntry& file = entries.at("models/tiny/model.gguf");
  EXPECT_EQ(file.digest, digest);
  EXPECT_EQ(file.mode, 0444u);
  EXPECT_EQ(file.offset % 65536, 0u);
  EXPECT_EQ(blob.substr(file.offset, file.size), content);
  for (const std::string& link :
       {std::string("hf/hub/x/model.gguf"), "ollama/models/blobs/sha256-" + digest.hex()}) {
    EXPECT_EQ(entries.at(link).type, archive::EntryType::kHardLink) << link;
    EXPECT_EQ(entries.at(link).link_target, "models/tiny/model.gguf");
  }
  EXPECT_EQ(entries.at("ollama/models/blobs").type, archive::EntryType::kDirectory);
  EXPECT_EQ(entries.at("ollama/models/blobs").mode, 0755u);
}

TEST_F(BuilderTest, UnencryptedBuildsAreEqualByteForByte) {
  MemoryStore one, two;
  ASSERT_TRUE(Run(one).ok());
  ASSERT_TRUE(Run(two).ok());
  EXPECT_EQ(one.manifest, two.manifest);
  EXPECT_EQ(one.blobs, two.blobs);
  MemoryStore later;
  ASSERT_TRUE(Run(later, {.mtime = 1}).ok());
  EXPECT_NE(one.manifest, later.manifest);
}

TEST_F(BuilderTest, EncryptedBuildsShareNoLayer) {
  const BuildOptions options{.recipients = {*crypt::GenerateKey("ec-p256")}};
  MemoryStore store;
  const auto one = Run(store, options), two = Run(store, options);
  ASSERT_TRUE(one.ok() && two.ok()) << one.status() << two.status();
  EXPECT_FALSE(oci::IsEncrypted(one->layers[0].descriptor.media_type));
  for (size_t i = 0; i < one->layers.size(); ++i) {
    EXPECT_NE(one->layers[i].descriptor.digest, two->layers[i].descriptor.digest);
    EXPECT_NE(one->layers[i].diff_id, two->layers[i].diff_id);
    if (i == 0) continue;
    EXPECT_TRUE(oci::IsEncrypted(one->layers[i].descriptor.media_type));
    EXPECT_TRUE(crypt::UnwrapLayer(one->layers[i].descriptor.annotations, options.recipients).ok());
  }
}

TEST_F(BuilderTest, ABaseStandsOnTop) {
  MemoryStore base, store;
  const oci::Descriptor layer = base.Put("application/vnd.oci.image.layer.v1.tar+gzip", "gz");
  const oci::Digest diff_id = oci::Digest::Of(AsBytes("tar"));
  oci::Manifest manifest;
  manifest.config = base.Put(
      oci::kConfigType,
      R"({"architecture":"amd64","os":"linux","config":{"Entrypoint":["/serve"],"Env":["A=b"]},)"
      R"("rootfs":{"type":"layers","diff_ids":[")" +
          diff_id.text() + R"("]}})");
  manifest.layers = {layer};
  base.manifest = oci::SerializeManifest(manifest);
  base.media_type = oci::kManifestType;

  BuildOptions options;
  options.base = &base;
  const auto image = Run(store, options);
  ASSERT_TRUE(image.ok()) << image.status();
  ASSERT_EQ(image->layers.size(), 5u);
  EXPECT_EQ(image->layers[4].descriptor.digest, layer.digest);
  EXPECT_EQ(store.blobs.at(layer.digest), "gz");
  const auto built = oci::ParseManifest(store.manifest);
  const std::string& config = store.blobs.at(built->config.digest);
  EXPECT_EQ(oci::ParseDiffIds(config)->at(4), diff_id);
  EXPECT_THAT(config, HasSubstr(R"("Entrypoint":["/serve"])"));
  EXPECT_THAT(config, HasSubstr(R"("Env":["A=b","OLLAMA_MODELS=/ollama/models"])"));
}

TEST_F(BuilderTest, AFailureNamesTheFileAndPublishesNothing) {
  MemoryStore store;
  fs::resize_file(folder_ / "mmproj.gguf", 5);
  auto image = Run(store);
  EXPECT_EQ(image.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Describe(image.status()), HasSubstr("mmproj.gguf: 5 bytes, 15 when"));
  fs::resize_file(folder_ / "mmproj.gguf", 16);
  EXPECT_THAT(Describe(Run(store).status()), HasSubstr("mmproj.gguf: 16 bytes, 15 when"));
  fs::remove(folder_ / "mmproj.gguf");
  image = Run(store);
  EXPECT_EQ(image.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Describe(image.status()), HasSubstr("mmproj.gguf"));
  EXPECT_EQ(store.manifest, "");
}

TEST_F(BuilderTest, AFileThatChangesWhileItIsReadIsAnError) {
  // More than is on its way at once: some of it is still to be read when the
  // first piece is written.
  const std::string content(24'000'000, 'w');
  plan_.weights[0].file.size = content.size();
  for (const uint64_t size : {10'000'000, 24'000'000, 30'000'000}) {
    std::ofstream(folder_ / "model.gguf") << content;
    MemoryStore store;
    bool changed = false;
    const auto image =
        Run(store, {.cancelled = [&] {
              if (!changed && store.blobs.size() == 1) {  // the model's first piece is written
                absl::SleepFor(absl::Milliseconds(20));   // file times are that coarse
                fs::resize_file(folder_ / "model.gguf", 1);
                fs::resize_file(folder_ / "model.gguf", size);
                changed = true;
              }
              return false;
            }});
    EXPECT_EQ(Describe(image.status()),
              fmt::format("failed precondition: layer of model.gguf: {}: changed while it was read",
                          (folder_ / "model.gguf").string()));
    EXPECT_EQ(store.manifest, "");
  }
}

TEST_F(BuilderTest, AFullTargetPublishesNothing) {
  const uint64_t needed = [&] {
    MemoryStore store;
    const auto image = Run(store);
    return image->size - store.manifest.size();
  }();
  for (const uint64_t room : {uint64_t{0}, uint64_t{1'000'000}, needed - 1}) {
    MemoryStore store;
    store.room = room;
    EXPECT_EQ(Run(store).status().code(), absl::StatusCode::kResourceExhausted) << room;
    EXPECT_EQ(store.manifest, "");
  }
  MemoryStore store;
  store.room = needed;
  EXPECT_TRUE(Run(store).ok());
}

// How often is asked depends on how far the stages are apart.
TEST_F(BuilderTest, CancellingAtAnyPieceEndsIt) {
  for (int last = 1;; ++last) {
    MemoryStore store;
    int seen = 0;
    const auto image = Run(store, {.cancelled = [&] { return ++seen >= last; }});
    if (image.ok()) {
      EXPECT_LT(seen, last);
      EXPECT_GT(last, 6);
      break;
    }
    EXPECT_EQ(image.status().code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(seen, last);
    EXPECT_EQ(store.manifest, "");
  }
}

TEST_F(BuilderTest, MoreLayersThanAManifestMayHaveAreRefusedBeforeAnyIsWritten) {
  MemoryStore store;
  while (plan_.weights.size() < 1023) plan_.weights.push_back(plan_.weights[0]);
  EXPECT_EQ(Run(store).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(store.blobs.empty());
}

}  // namespace
}  // namespace kapsule::image
