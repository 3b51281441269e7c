// Views for tests of this folder: real layers in memory.
#pragma once

#include <memory>
#include <string>

#include "core/blob/test_layer.h"
#include "snapshotter/fuse/view_table.h"

namespace kapsule::fuse::testing {

// Owns the bytes that `view` reads.
struct TestView {
  blob::TestLayer layer;
  ViewPtr view;
};

// An encrypted layer with one file of `size` bytes, served as `digest`. Aborts
// where a piece fails.
inline std::unique_ptr<TestView> MakeTestView(const oci::Digest& digest, size_t size) {
  auto made = std::make_unique<TestView>();
  made->layer =
      blob::BuildTestLayer({blob::MakeTestFile("weights", blob::TestBytes(size, 1))}, true);
  auto reader = blob::LayerReader::Open(std::make_unique<MemoryReader>(AsBytes(made->layer.bytes)),
                                        made->layer.ref, made->layer.key.Clone());
  made->view = std::make_shared<const ServedView>(
      digest, view::View::Open(std::move(reader).value()).value());
  return made;
}

inline oci::Digest DigestStarting(std::string_view hex) {
  return oci::Digest::Parse("sha256:" + std::string(hex) + std::string(64 - hex.size(), '5'))
      .value();
}

}  // namespace kapsule::fuse::testing
