#include "core/model/gguf_metadata.h"

#include <set>
#include <string_view>
#include <type_traits>

#include "core/base/printable.h"
#include "core/model/gguf.h"
#include "core/model/gguf_types.h"

namespace kapsule::model {
namespace {

// Strings that are kept are at most this long.
constexpr uint64_t kMaxKeptBytes = 4096;

bool IsWantedNumber(std::string_view key) {
  for (const std::string_view suffix : {".context_length", ".embedding_length", ".block_count"})
    if (key.ends_with(suffix)) return true;
  return key == "general.alignment" || key == "general.file_type" || key == "split.no" ||
         key == "split.count";
}

bool IsWantedString(std::string_view key) {
  return key == "general.architecture" || key == "general.name" || key == "general.type";
}

template <typename T>
absl::Status KeepInteger(GgufCursor& in, const std::string& key, GgufMetadata& metadata) {
  ASSIGN_OR_RETURN(const T value, in.Read<T>());
  if constexpr (std::is_signed_v<T>)
    if (value < 0) return InvalidArgument("{} is negative", Printable(key));
  metadata.numbers[key] = static_cast<uint64_t>(value);
  return absl::OkStatus();
}

absl::Status ReadNumber(GgufCursor& in, GgufType type, uint64_t size, const std::string& key,
                        GgufMetadata& metadata) {
  if (!IsWantedNumber(key)) return in.Skip(size);
  switch (type) {
    case GgufType::kUint8:
      return KeepInteger<uint8_t>(in, key, metadata);
    case GgufType::kInt8:
      return KeepInteger<int8_t>(in, key, metadata);
    case GgufType::kUint16:
      return KeepInteger<uint16_t>(in, key, metadata);
    case GgufType::kInt16:
      return KeepInteger<int16_t>(in, key, metadata);
    case GgufType::kUint32:
      return KeepInteger<uint32_t>(in, key, metadata);
    case GgufType::kInt32:
      return KeepInteger<int32_t>(in, key, metadata);
    case GgufType::kUint64:
      return KeepInteger<uint64_t>(in, key, metadata);
    case GgufType::kInt64:
      return KeepInteger<int64_t>(in, key, metadata);
    default:
      return InvalidArgument("{} is not a whole number", Printable(key));
  }
}

absl::Status SkipArray(GgufCursor& in, const std::string& key) {
  ASSIGN_OR_RETURN(const uint32_t type, in.Read<uint32_t>());
  ASSIGN_OR_RETURN(const uint64_t count, in.Read<uint64_t>());
  if (count > kMaxGgufArray)
    return InvalidArgument("{} has {} elements, more than the limit of {}", Printable(key), count,
                           kMaxGgufArray);
  if (const std::optional<uint64_t> size = GgufScalarSize(GgufType{type}))
    return in.Skip(count * *size);
  if (GgufType{type} != GgufType::kString)
    return InvalidArgument("{} is an array of type {}", Printable(key), type);
  for (uint64_t i = 0; i < count; ++i) RETURN_IF_ERROR(in.SkipString());
  return absl::OkStatus();
}

absl::Status ReadString(GgufCursor& in, const std::string& key, GgufMetadata& metadata) {
  if (!IsWantedString(key)) {
    metadata.has_chat_template |= key == "tokenizer.chat_template";
    return in.SkipString();
  }
  ASSIGN_OR_RETURN(metadata.strings[key], in.ReadString(kMaxKeptBytes));
  return absl::OkStatus();
}

absl::Status ReadKeyValue(GgufCursor& in, std::set<std::string>& keys, GgufMetadata& metadata) {
  ASSIGN_OR_RETURN(std::string key, in.ReadString(kMaxGgufKeyBytes));
  ASSIGN_OR_RETURN(const uint32_t type, in.Read<uint32_t>());
  const auto [added, is_new] = keys.insert(std::move(key));
  if (!is_new) return InvalidArgument("metadata key \"{}\" stands twice", Printable(*added));
  if (const std::optional<uint64_t> size = GgufScalarSize(GgufType{type}))
    return ReadNumber(in, GgufType{type}, *size, *added, metadata);
  if (GgufType{type} == GgufType::kString) return ReadString(in, *added, metadata);
  if (GgufType{type} == GgufType::kArray) return SkipArray(in, *added);
  return InvalidArgument("{} has type {}, which GGUF does not have", Printable(*added), type);
}

}  // namespace

std::string GgufMetadata::String(const std::string& key) const {
  const auto found = strings.find(key);
  return found == strings.end() ? "" : found->second;
}

std::optional<uint64_t> GgufMetadata::Number(const std::string& key) const {
  const auto found = numbers.find(key);
  if (found == numbers.end()) return std::nullopt;
  return found->second;
}

absl::StatusOr<GgufMetadata> ReadGgufMetadata(GgufCursor& in, uint64_t count) {
  GgufMetadata metadata;
  std::set<std::string> keys;
  for (uint64_t i = 0; i < count; ++i) {
    const absl::Status status = ReadKeyValue(in, keys, metadata);
    if (!status.ok()) return Annotate(status, fmt::format("metadata entry {}", i));
  }
  return metadata;
}

}  // namespace kapsule::model
