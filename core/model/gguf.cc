#include "core/model/gguf.h"

#include <algorithm>
#include <set>
#include <vector>

#include "core/base/printable.h"
#include "core/model/gguf_cursor.h"
#include "core/model/gguf_metadata.h"
#include "core/model/gguf_types.h"

namespace kapsule::model {
namespace {

constexpr uint64_t kMaxTensorNameBytes = 63;
constexpr uint32_t kMaxDimensions = 4;

struct Header {
  uint32_t version = 0;
  uint64_t tensors = 0, key_values = 0;
};

absl::StatusOr<Header> ReadHeader(GgufCursor& in) {
  Header header;
  ASSIGN_OR_RETURN(const uint32_t magic, in.Read<uint32_t>());
  if (magic != 0x46554747) return InvalidArgument("not a GGUF file");
  ASSIGN_OR_RETURN(header.version, in.Read<uint32_t>());
  if (header.version == __builtin_bswap32(2) || header.version == __builtin_bswap32(3))
    return Unimplemented("big-endian GGUF is not supported");
  if (header.version != 2 && header.version != 3)
    return Unimplemented("GGUF version {} is not supported", header.version);
  ASSIGN_OR_RETURN(header.tensors, in.Read<uint64_t>());
  ASSIGN_OR_RETURN(header.key_values, in.Read<uint64_t>());
  if (header.tensors > kMaxGgufTensors)
    return InvalidArgument("{} tensors, more than the limit of {}", header.tensors,
                           kMaxGgufTensors);
  if (header.key_values > kMaxGgufKeyValues)
    return InvalidArgument("{} metadata entries, more than the limit of {}", header.key_values,
                           kMaxGgufKeyValues);
  return header;
}

struct Extent {
  uint64_t offset = 0;  // in the data
  uint64_t length = 0;  // bytes; 0 of an unknown tensor type
  bool operator<(const Extent& other) const { return offset < other.offset; }
};

struct Tensors {
  std::vector<Extent> extents;
  uint64_t parameters = 0;
};

absl::StatusOr<uint64_t> DataLength(uint32_t type, uint64_t row, uint64_t elements) {
  const std::optional<GgmlBlock> block = GgmlBlockOf(type);
  if (!block.has_value()) return 0;
  if (row % block->elements != 0)
    return InvalidArgument("rows of {} elements in blocks of {}", row, block->elements);
  const std::optional<uint64_t> length = CheckedMul(elements / block->elements, block->bytes);
  if (!length.has_value()) return InvalidArgument("its size does not fit 64 bits");
  return *length;
}

absl::Status ReadTensor(GgufCursor& in, std::set<std::string>& names, Tensors& tensors) {
  ASSIGN_OR_RETURN(std::string name, in.ReadString(kMaxTensorNameBytes));
  if (const auto [at, is_new] = names.insert(std::move(name)); !is_new)
    return InvalidArgument("the name \"{}\" stands twice", Printable(*at));
  ASSIGN_OR_RETURN(const uint32_t dimensions, in.Read<uint32_t>());
  if (dimensions > kMaxDimensions) return InvalidArgument("{} dimensions", dimensions);
  uint64_t elements = 1, row = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    ASSIGN_OR_RETURN(const uint64_t n, in.Read<uint64_t>());
    const std::optional<uint64_t> product = CheckedMul(elements, n);
    if (!product.has_value()) return InvalidArgument("its size does not fit 64 bits");
    elements = *product;
    if (i == 0) row = n;
  }
  ASSIGN_OR_RETURN(const uint32_t type, in.Read<uint32_t>());
  ASSIGN_OR_RETURN(const uint64_t offset, in.Read<uint64_t>());
  ASSIGN_OR_RETURN(const uint64_t length, DataLength(type, row, elements));
  const std::optional<uint64_t> sum = CheckedAdd(tensors.parameters, elements);
  if (!sum.has_value()) return InvalidArgument("more elements than fit 64 bits");
  tensors.parameters = *sum;
  tensors.extents.push_back({offset, length});
  return absl::OkStatus();
}

absl::StatusOr<Tensors> ReadTensors(GgufCursor& in, uint64_t count) {
  Tensors tensors;
  std::set<std::string> names;
  for (uint64_t i = 0; i < count; ++i) {
    const absl::Status status = ReadTensor(in, names, tensors);
    if (!status.ok()) return Annotate(status, fmt::format("tensor {}", i));
  }
  return tensors;
}

absl::Status CheckExtents(std::vector<Extent> extents, uint64_t alignment, uint64_t header,
                          uint64_t file_size) {
  const uint64_t begin = AlignUp(header, alignment);
  const uint64_t data = file_size > begin ? file_size - begin : 0;
  std::sort(extents.begin(), extents.end());
  uint64_t end = 0;
  for (const Extent& extent : extents) {
    if (extent.offset % alignment != 0)
      return InvalidArgument("tensor data at {} is not aligned to {}", extent.offset, alignment);
    if (extent.offset > data || extent.length > data - extent.offset)
      return InvalidArgument("tensor data at {} of {} bytes is not inside the file's {} bytes",
                             extent.offset, extent.length, file_size);
    if (extent.offset < end)
      return InvalidArgument("tensor data at {} overlaps other data", extent.offset);
    end = extent.offset + extent.length;
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> AlignmentOf(const GgufMetadata& metadata) {
  const uint64_t alignment = metadata.Number("general.alignment").value_or(32);
  if (!std::has_single_bit(alignment) || alignment > kMaxGgufAlignment)
    return InvalidArgument("general.alignment is {}", alignment);
  return alignment;
}

bool IsWord(std::string_view text) {
  return !text.empty() && text.size() <= 64 && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  });
}

absl::StatusOr<std::optional<GgufInfo::Split>> SplitOf(const GgufMetadata& metadata) {
  const uint64_t count = metadata.Number("split.count").value_or(0);
  if (count <= 1) return std::optional<GgufInfo::Split>();
  const uint64_t number = metadata.Number("split.no").value_or(0);
  if (number >= count) return InvalidArgument("split.no is {} of {}", number, count);
  return std::optional<GgufInfo::Split>({number, count});
}

absl::StatusOr<GgufInfo> Describe(const GgufMetadata& metadata) {
  GgufInfo info;
  ASSIGN_OR_RETURN(info.split, SplitOf(metadata));
  info.architecture = metadata.String("general.architecture");
  // Only the first part of a split set has the model's metadata.
  const bool later_part = info.split.has_value() && info.split->number > 0;
  if (!IsWord(info.architecture) && !(later_part && info.architecture.empty()))
    return InvalidArgument("general.architecture is missing or not a word");
  info.name = metadata.String("general.name");
  info.type = metadata.String("general.type");
  const std::optional<uint64_t> file_type = metadata.Number("general.file_type");
  info.file_type = file_type.has_value() ? GgufFileType(*file_type) : "unknown";
  const auto number = [&](const char* key) {
    return metadata.Number(info.architecture + key).value_or(0);
  };
  info.context_length = number(".context_length");
  info.embedding_length = number(".embedding_length");
  info.block_count = number(".block_count");
  info.vision_block_count = number(".vision.block_count");
  info.has_chat_template = metadata.has_chat_template;
  return info;
}

}  // namespace

absl::StatusOr<GgufInfo> ReadGguf(const ReaderAt& file) {
  GgufCursor in(file);
  ASSIGN_OR_RETURN(const Header header, ReadHeader(in));
  ASSIGN_OR_RETURN(const GgufMetadata metadata, ReadGgufMetadata(in, header.key_values));
  ASSIGN_OR_RETURN(GgufInfo info, Describe(metadata));
  ASSIGN_OR_RETURN(Tensors tensors, ReadTensors(in, header.tensors));
  ASSIGN_OR_RETURN(const uint64_t alignment, AlignmentOf(metadata));
  RETURN_IF_ERROR(CheckExtents(std::move(tensors.extents), alignment, in.position(), file.size()));
  info.version = header.version;
  info.tensors = header.tensors;
  info.parameters = tensors.parameters;
  return info;
}

}  // namespace kapsule::model
