#include "core/model/safetensors.h"

#include <algorithm>
#include <array>
#include <map>
#include <span>
#include <tuple>
#include <vector>

#include "core/base/bytes.h"
#include "core/model/safetensors_header.h"

namespace kapsule::model {
namespace {

// The tensors lie one after the other, without hole, from 0 to the file's end.
absl::Status CheckExtents(std::vector<SafetensorsTensor>& tensors, uint64_t data) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  uint64_t end = 0;
  for (const SafetensorsTensor& tensor : tensors) {
    if (tensor.begin != end)
      return InvalidArgument("{} in the data at {}",
                             tensor.begin < end ? "tensors overlap" : "a hole",
                             std::min(end, tensor.begin));
    end = tensor.end;
  }
  if (end > data) return InvalidArgument("the data is cut short: {} bytes of {}", data, end);
  if (end < data) return InvalidArgument("{} bytes after the last tensor", data - end);
  return absl::OkStatus();
}

absl::StatusOr<SafetensorsInfo> Summarize(const std::vector<SafetensorsTensor>& tensors) {
  SafetensorsInfo info;
  info.tensors = tensors.size();
  std::map<std::string, uint64_t> by_type;
  for (const SafetensorsTensor& tensor : tensors) {
    const std::optional<uint64_t> sum = CheckedAdd(info.parameters, tensor.elements);
    if (!sum.has_value()) return InvalidArgument("more elements than fit 64 bits");
    info.parameters = *sum;
    by_type[std::string(tensor.dtype)] += tensor.elements;
  }
  uint64_t most = 0;
  for (const auto& [dtype, elements] : by_type) {
    if (!info.dtype.empty() && elements <= most) continue;
    info.dtype = dtype;
    most = elements;
  }
  return info;
}

}  // namespace

absl::StatusOr<SafetensorsInfo> ReadSafetensors(const ReaderAt& file) {
  std::array<std::byte, 8> prefix;
  if (file.size() < prefix.size())
    return InvalidArgument("not a safetensors file: {} bytes", file.size());
  RETURN_IF_ERROR(file.ReadAt(0, prefix));
  const auto length = LoadLe<uint64_t>(prefix.data());
  if (length > kMaxSafetensorsHeaderBytes)
    return InvalidArgument("header too large: {} bytes, more than the limit of {}", length,
                           kMaxSafetensorsHeaderBytes);
  if (length > file.size() - prefix.size())
    return InvalidArgument("the header is cut short: {} bytes of {}", file.size() - prefix.size(),
                           length);
  std::string header(length, '\0');
  RETURN_IF_ERROR(file.ReadAt(prefix.size(), std::as_writable_bytes(std::span(header))));
  ASSIGN_OR_RETURN(std::vector<SafetensorsTensor> tensors, ParseSafetensorsHeader(header));
  RETURN_IF_ERROR(CheckExtents(tensors, file.size() - prefix.size() - length));
  return Summarize(tensors);
}

}  // namespace kapsule::model
