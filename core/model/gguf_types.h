// Numbers of GGUF and ggml (ggml.h, gguf.h).
#pragma once

#include <cstdint>
#include <optional>

namespace kapsule::model {

enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// Bytes of a number or bool; nullopt for strings, arrays and unknown types.
std::optional<uint64_t> GgufScalarSize(GgufType type);

// Elements of a block of a tensor type, and its bytes; nullopt for a type that
// this code does not know.
struct GgmlBlock {
  uint64_t elements, bytes;
};
std::optional<GgmlBlock> GgmlBlockOf(uint32_t tensor_type);

}  // namespace kapsule::model
