// Views for tests of this folder: real layers in memory.
#pragma once

#include <fcntl.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "core/blob/test_layer.h"
#include "core/view/view.h"
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
      digest, view::Image::Make(made->layer.toc, made->layer.header.tar_length, true).value(),
      std::move(reader).value());
  return made;
}

// All bytes of the view, by another way than they are served.
inline std::string BytesOf(const TestView& made) {
  auto reader = blob::LayerReader::Open(std::make_unique<MemoryReader>(AsBytes(made.layer.bytes)),
                                        made.layer.ref, made.layer.key.Clone());
  const auto view = view::View::Open(std::move(reader).value()).value();
  std::string bytes(view->size(), '\0');
  if (!view->Read(0, std::as_writable_bytes(std::span(bytes))).ok()) std::abort();
  return bytes;
}

// As of the first process of a connection.
inline std::unique_ptr<RequestMemory> MakeMemory(unsigned workers = 2) {
  auto memory = RequestMemory::Make(workers).value();
  memory->TakeOver();
  return memory;
}

// What a successor finds in `memory`.
inline std::unique_ptr<RequestMemory> Succeed(const RequestMemory& memory, unsigned workers = 2) {
  auto adopted = RequestMemory::Adopt(UniqueFd(fcntl(memory.fd(), F_DUPFD_CLOEXEC, 0)), workers);
  return std::move(adopted).value();
}

// Puts a request into a slot, as the kernel does.
inline void PutRequest(const RequestSlot& slot, std::string_view request) {
  std::memcpy(slot.buffer().data() + 4, request.data() + 4, request.size() - 4);
  std::memcpy(slot.buffer().data(), request.data(), 4);
}

inline std::string MakeRequest(uint32_t opcode, uint64_t node, std::string_view body,
                               uint64_t unique = 77) {
  fuse_in_header header{};
  header.len = static_cast<uint32_t>(sizeof(header) + body.size());
  header.opcode = opcode;
  header.unique = unique;
  header.nodeid = node;
  return std::string(AsText(std::as_bytes(std::span(&header, 1)))) + std::string(body);
}

template <typename T>
std::string BodyOf(const T& in) {
  return std::string(AsText(std::as_bytes(std::span(&in, 1))));
}

inline oci::Digest DigestStarting(std::string_view hex) {
  return oci::Digest::Parse("sha256:" + std::string(hex) + std::string(64 - hex.size(), '5'))
      .value();
}

}  // namespace kapsule::fuse::testing
