// Layers that version 1 wrote open for ever (tests/golden/v1/README.md).
#include <gtest/gtest.h>

#include "core/base/file.h"
#include "core/blob/layer_reader.h"
#include "core/crypt/keywrap_jwe.h"
#include "core/oci/manifest.h"
#include "core/view/view.h"

namespace kapsule::ctl {
namespace {

constexpr char kFolder[] = PROJECT_SOURCE_DIR "/tests/golden/v1/";
constexpr size_t kLimit = 1 << 20;

std::string Golden(const std::string& name) {
  auto text = ReadFile(kFolder + name, kLimit);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.value_or("");
}

oci::Descriptor DescriptorOf(const std::string& layer) {
  const auto json = ParseJson(Golden(layer + ".json"), kLimit);
  const auto descriptor = oci::DescriptorFromJson(*json);
  EXPECT_TRUE(descriptor.ok()) << descriptor.status();
  return *descriptor;
}

absl::StatusOr<std::unique_ptr<blob::LayerReader>> OpenLayer(const std::string& layer) {
  const oci::Descriptor descriptor = DescriptorOf(layer);
  ASSIGN_OR_RETURN(oci::IndexRef ref,
                   oci::IndexRef::FromJson(descriptor.annotations.at(oci::kIndexAnnotation)));
  std::optional<crypt::LayerKey> key;
  if (oci::IsEncrypted(descriptor.media_type)) {
    ASSIGN_OR_RETURN(const crypt::Key private_key,
                     crypt::LoadPrivateKey(std::string(kFolder) + "private.pem"));
    ASSIGN_OR_RETURN(auto options, crypt::UnwrapLayer(descriptor.annotations, {&private_key, 1}));
    EXPECT_EQ(options.index, ref);
    key = std::move(options.key);
  }
  ASSIGN_OR_RETURN(auto file, FileReader::Open(kFolder + layer + ".blob"));
  return blob::LayerReader::Open(std::move(file), ref, std::move(key));
}

class GoldenTest : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(V1, GoldenTest, testing::Values("plain", "encrypted"));

TEST_P(GoldenTest, TheBlobIsTheOneThatWasCommitted) {
  const oci::Descriptor descriptor = DescriptorOf(GetParam());
  const std::string bytes = Golden(GetParam() + std::string(".blob"));
  EXPECT_EQ(bytes.size(), descriptor.size);
  EXPECT_EQ(oci::Digest::Of(AsBytes(bytes)), descriptor.digest);
}

TEST_P(GoldenTest, EveryFileIsReadBack) {
  const auto layer = OpenLayer(GetParam());
  ASSERT_TRUE(layer.ok()) << layer.status();
  const auto toc = (*layer)->ReadToc();
  ASSERT_TRUE(toc.ok()) << toc.status();
  const auto files = ParseJson(Golden("files.json"), kLimit);
  ASSERT_TRUE(files.ok()) << files.status();
  std::map<std::string, std::string> read, expected;
  for (const archive::TocEntry& entry : toc->entries) {
    if (entry.type == archive::EntryType::kHardLink)
      read[entry.path] = "link to " + entry.link_target;
    if (entry.type != archive::EntryType::kFile) continue;
    std::string content(entry.size, '\0');
    const absl::Status status =
        (*layer)->Read(entry.offset, std::as_writable_bytes(std::span(content)));
    ASSERT_TRUE(status.ok()) << status;
    read[entry.path] = oci::Digest::Of(AsBytes(content)).text();
    EXPECT_EQ(entry.digest.text(), read[entry.path]);
  }
  for (const auto& [path, what] : files->items()) expected[path] = what;
  EXPECT_EQ(read, expected);
}

TEST_P(GoldenTest, ItsViewOpens) {
  auto layer = OpenLayer(GetParam());
  ASSERT_TRUE(layer.ok()) << layer.status();
  const auto view = view::View::Open(*std::move(layer));
  ASSERT_TRUE(view.ok()) << view.status();
  std::string all((*view)->size(), '\0');
  EXPECT_TRUE((*view)->Read(0, std::as_writable_bytes(std::span(all))).ok());
}

}  // namespace
}  // namespace kapsule::ctl
