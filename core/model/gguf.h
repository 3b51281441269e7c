// The header of a GGUF file, read with small bounded reads and never mapped:
// the file is not trusted and may change while it is read (ggml docs/gguf.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/base/file.h"

namespace kapsule::model {

inline constexpr uint64_t kMaxGgufHeaderBytes = 128 << 20;
inline constexpr uint64_t kMaxGgufKeyValues = 65'536;
inline constexpr uint64_t kMaxGgufTensors = 262'144;
inline constexpr uint64_t kMaxGgufKeyBytes = 64 << 10;
inline constexpr uint64_t kMaxGgufStringBytes = 16 << 20;
inline constexpr uint64_t kMaxGgufArray = 64 << 20;  // elements
inline constexpr uint64_t kMaxGgufAlignment = 4096;

struct GgufInfo {
  uint32_t version = 0;      // 2 or 3
  std::string architecture;  // "llama", "clip", …; empty only in later parts of a split set
  std::string name;          // general.name; may be empty
  std::string type;          // general.type: "model", "adapter", "mmproj", …; may be empty
  std::string file_type;     // "Q4_K_M"; "unknown" where the file does not say
  uint64_t tensors = 0;
  uint64_t parameters = 0;          // elements of all tensors
  uint64_t context_length = 0;      // tokens; 0 where the file does not say
  uint64_t embedding_length = 0;    // 0 where the file does not say
  uint64_t block_count = 0;         // of a language model
  uint64_t vision_block_count = 0;  // of an image encoder
  bool has_chat_template = false;
  struct Split {
    uint64_t number = 0;  // from 0
    uint64_t count = 0;
  };
  std::optional<Split> split;  // one file of a set
};

// Reads and checks header, metadata and tensor list: counts, unique names,
// alignment, and that the data of every tensor lies inside the file without
// overlap (of a tensor type that is newer than this code only the beginning).
//   InvalidArgument  not GGUF, damaged, truncated or beyond a limit; says where
//   Unimplemented    another version, or big-endian
absl::StatusOr<GgufInfo> ReadGguf(const ReaderAt& file);

// "Q4_K_M" for 15; "unknown" for a number that is not known.
std::string GgufFileType(uint64_t number);

}  // namespace kapsule::model
