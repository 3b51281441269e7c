#include "core/blob/test_layer.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <utility>

#include "core/archive/index_writer.h"
#include "core/archive/tar_writer.h"

namespace kapsule::blob {
namespace {

constexpr uint64_t kCoveredUnit = 64 << 10;

void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "test layer: %s\n", Describe(status).c_str());
  std::abort();
}

template <typename T>
T Must(absl::StatusOr<T> value) {
  Must(value.status());
  return *std::move(value);
}

archive::Sink AppendTo(std::string& text) {
  return [&text](ByteSpan bytes) {
    text += AsText(bytes);
    return absl::OkStatus();
  };
}

archive::Toc WriteTar(const std::vector<TestFile>& files, std::string& tar) {
  archive::TarWriter writer(AppendTo(tar));
  for (const TestFile& file : files) {
    if (file.entry.type != archive::EntryType::kFile) {
      Must(writer.Add(file.entry));
      continue;
    }
    Must(writer.BeginFile(file.entry));
    Must(writer.Write(AsBytes(file.content)));
    Must(writer.EndFile().status());
  }
  return Must(writer.Finish());
}

// `bytes` XOR the key stream from byte `offset` of the layer on.
std::string Crypt(const crypt::LayerKey& key, uint64_t offset, std::string bytes) {
  crypt::LayerCipher cipher = Must(crypt::LayerCipher::Create(key));
  Must(cipher.Apply(offset, AsBytes(bytes), std::as_writable_bytes(std::span(bytes))));
  return bytes;
}

void AppendBlocks(const TestLayer& layer, archive::IndexWriter& index) {
  const std::string_view covered = layer.bytes;
  for (size_t at = 0; at < covered.size(); at += layer.header.block_size)
    Must(index.AppendBlock(oci::Digest::Of(AsBytes(covered.substr(at, layer.header.block_size)))));
}

void AppendTags(const TestLayer& layer, archive::IndexWriter& index) {
  const uint32_t chunk_size = layer.header.chunk_size;
  crypt::ChunkMac mac = Must(crypt::ChunkMac::Create(layer.key, layer.header.salt, chunk_size,
                                                     layer.header.covered_length));
  const std::string_view covered = layer.bytes;
  for (size_t at = 0; at < covered.size(); at += chunk_size) {
    const ByteSpan chunk = AsBytes(covered.substr(at, chunk_size));
    Must(index.AppendTag(Must(mac.Tag(at / chunk_size, chunk))));
  }
}

}  // namespace

TestFile MakeTestFile(std::string path, std::string content) {
  TestFile file{archive::FileEntry(std::move(path), content.size()), std::move(content)};
  return file;
}

std::string TestBytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::string bytes(AlignUp(size, 4), '\0');
  for (size_t at = 0; at < bytes.size(); at += 4) StoreLe<uint32_t>(bytes.data() + at, random());
  bytes.resize(size);
  return bytes;
}

std::vector<TestFile> SampleFiles() {
  using archive::DirectoryEntry;
  std::vector<TestFile> files;
  files.push_back({DirectoryEntry(""), ""});
  files.push_back({DirectoryEntry("models"), ""});
  files.push_back({DirectoryEntry("models/tiny"), ""});
  files.push_back({DirectoryEntry("blobs"), ""});
  for (const size_t size : {1, 511, 4095, 4096, 4097, 65535, 65536, 65537, (1 << 20) - 1, 1 << 20,
                            (1 << 20) + 1, 3 << 20})
    files.push_back(MakeTestFile(fmt::format("models/tiny/file-{}", size), TestBytes(size, size)));
  files.push_back(MakeTestFile("models/tiny/empty", ""));
  files.push_back(MakeTestFile("models/" + std::string(255, 'n'), "long name"));
  files.push_back({archive::HardLinkEntry("blobs/sha256-x", "models/tiny/file-3145728"), ""});
  files.push_back({archive::SymlinkEntry("models/latest", "tiny/file-4096"), ""});
  for (TestFile& file : files) file.entry.mtime = 1'700'000'000;
  return files;
}

TestLayer BuildTestLayer(const std::vector<TestFile>& files, bool encrypted, uint32_t chunk_size) {
  TestLayer layer;
  layer.toc = WriteTar(files, layer.plain);
  layer.header.tar_length = layer.plain.size();
  const std::string toc = archive::SerializeToc(layer.toc);
  layer.header.toc_length = toc.size();
  layer.plain += toc;
  layer.plain.resize(AlignUp(layer.plain.size(), kCoveredUnit));
  layer.header.covered_length = layer.plain.size();
  layer.header.chunk_size = chunk_size;
  layer.header.encrypted = encrypted;

  layer.bytes = layer.plain;
  if (encrypted) {
    layer.key = Must(crypt::LayerKey::Generate());
    Must(FillRandom(layer.header.salt));
    layer.header.commitment = Must(crypt::CommitmentTo(layer.key, layer.header.salt));
    layer.bytes = Crypt(layer.key, 0, layer.plain);
  }
  layer.header.toc_digest = oci::Digest::Of(
      AsBytes(std::string_view(layer.bytes).substr(layer.header.tar_length, toc.size())));

  archive::IndexWriter index("/tmp");
  AppendBlocks(layer, index);
  if (encrypted) AppendTags(layer, index);
  std::string index_bytes;
  layer.header = Must(index.Finish(layer.header, AppendTo(index_bytes)));
  layer.plain += encrypted ? Crypt(layer.key, layer.bytes.size(), index_bytes) : index_bytes;
  layer.bytes += index_bytes;
  layer.ref = {1, layer.bytes.size() - archive::kHeaderSize, archive::kHeaderSize,
               oci::Digest::Of(layer.header.Encode())};
  return layer;
}

}  // namespace kapsule::blob
