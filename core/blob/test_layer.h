// Small layers for tests, put together from the pieces that a builder uses.
#pragma once

#include <string>
#include <vector>

#include "core/archive/index.h"
#include "core/archive/toc.h"
#include "core/crypt/layer_cipher.h"
#include "core/oci/annotations.h"

namespace kapsule::blob {

// One member; `content` is a file's. Parent directories are written by the
// caller's list too.
struct TestFile {
  archive::TocEntry entry;
  std::string content;
};

// A file of `content`; entry.size follows.
TestFile MakeTestFile(std::string path, std::string content);
// `size` bytes that differ from place to place and from seed to seed.
std::string TestBytes(size_t size, uint32_t seed);
// Directories, files below, at and above the unit sizes, an empty file, a hard
// link, a symlink and a name of 255 bytes.
std::vector<TestFile> SampleFiles();

struct TestLayer {
  std::string bytes;    // the blob as stored
  std::string plain;    // the decrypted stream, as stock tools see it
  crypt::LayerKey key;  // empty secrets where not encrypted
  oci::IndexRef ref;
  archive::IndexHeader header;
  archive::Toc toc;
};

// Dies (as tests may) where a piece fails.
TestLayer BuildTestLayer(const std::vector<TestFile>& files, bool encrypted,
                         uint32_t chunk_size = 64 * 1024);

}  // namespace kapsule::blob
