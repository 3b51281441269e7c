// Small models and folders for the tests of this module.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/file.h"

namespace kapsule::model {

class TempFolder {
 public:
  TempFolder() {
    std::string name = "/tmp/kapsule-model-XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~TempFolder() { EXPECT_TRUE(RemoveTree(path_).ok()); }
  const std::filesystem::path& path() const { return path_; }
  // Writes a file, with the folders above it.
  std::filesystem::path Write(const std::string& name, const std::string& content) const {
    const std::filesystem::path path = path_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }

 private:
  std::filesystem::path path_;
};

template <typename T>
std::string Le(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(T)};
}
inline std::string GgufString(const std::string& text) { return Le<uint64_t>(text.size()) + text; }

// Writes a GGUF of any (also wrong) content.
class GgufMaker {
 public:
  uint32_t version = 3;
  uint64_t extra_tensors = 0, extra_keys = 0;  // claimed, not there

  GgufMaker& Raw(const std::string& key, uint32_t type, const std::string& value) {
    ++keys_;
    metadata_ += GgufString(key) + Le(type) + value;
    return *this;
  }
  GgufMaker& Text(const std::string& key, const std::string& value) {
    return Raw(key, 8, GgufString(value));
  }
  GgufMaker& U32(const std::string& key, uint32_t value) { return Raw(key, 4, Le(value)); }
  GgufMaker& U16(const std::string& key, uint16_t value) { return Raw(key, 2, Le(value)); }
  GgufMaker& Tensor(const std::string& name, const std::vector<uint64_t>& shape, uint32_t type,
                    uint64_t offset) {
    ++tensors_;
    infos_ += GgufString(name) + Le<uint32_t>(static_cast<uint32_t>(shape.size()));
    for (const uint64_t n : shape) infos_ += Le(n);
    infos_ += Le(type) + Le(offset);
    return *this;
  }
  GgufMaker& Data(size_t bytes) {
    data_ = std::string(bytes, 'w');
    return *this;
  }
  std::string Header() const {
    return "GGUF" + Le(version) + Le(tensors_ + extra_tensors) + Le(keys_ + extra_keys) +
           metadata_ + infos_;
  }
  std::string Make() const {
    const std::string header = Header();
    return header + std::string(AlignUp(header.size(), 32) - header.size(), '\0') + data_;
  }

 private:
  uint64_t tensors_ = 0, keys_ = 0;
  std::string metadata_, infos_, data_;
};

// A GGUF with one F32 tensor of 8 x 4.
inline GgufMaker SmallGguf(const std::string& architecture = "llama") {
  GgufMaker maker;
  maker.Text("general.architecture", architecture)
      .U32("general.file_type", 15)
      .U32(architecture + ".context_length", 128)
      .U32(architecture + ".embedding_length", 8)
      .U32(architecture + ".block_count", 1)
      .Tensor("token_embd.weight", {8, 4}, 0, 0)
      .Data(128);
  return maker;
}

// One part of a split set; as llama-gguf-split writes them, only the first has
// the model's metadata.
inline std::string SplitGguf(uint16_t number, uint16_t count) {
  GgufMaker maker = number == 0 ? SmallGguf() : GgufMaker();
  if (number != 0) maker.Tensor("part", {8, 4}, 0, 0).Data(128);
  return maker.U16("split.no", number).U16("split.count", count).Make();
}

inline std::string SafetensorsFile(const std::string& json, size_t data) {
  return Le<uint64_t>(json.size()) + json + std::string(data, 'w');
}
// 6 elements of BF16.
inline std::string SmallSafetensors() {
  return SafetensorsFile(R"({"__metadata__":{"format":"pt"},)"
                         R"("a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}})",
                         12);
}

}  // namespace kapsule::model
