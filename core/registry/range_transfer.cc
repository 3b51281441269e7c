#include "core/registry/range_transfer.h"

#include <algorithm>
#include <charconv>

#include "core/base/printable.h"
#include "core/registry/hosts_default.h"

namespace kapsule::registry {
namespace {

constexpr size_t kMaxHeaderShown = 80;

std::optional<uint64_t> ParseNumber(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

// Says whether `value` is "bytes <first>-<end - 1>/<size>", the size as a number
// or "*".
bool IsContentRange(const std::string& value, uint64_t first, uint64_t end, uint64_t size) {
  const std::string range = fmt::format("bytes {}-{}/", first, end - 1);
  return value.starts_with(range) &&
         (value.substr(range.size()) == "*" || ParseNumber(value.substr(range.size())) == size);
}

absl::Status CheckLength(const http::Response& head, uint64_t length) {
  const std::optional<std::string> text = head.headers.Find("Content-Length");
  if (!text || ParseNumber(*text) == length) return absl::OkStatus();
  return DataLoss("{} answered {} with Content-Length {} in place of {}", HostOfUrl(head.url),
                  head.status, PrintableAscii(*text, kMaxHeaderShown), length);
}

// The bytes would be others.
absl::Status CheckCoding(const http::Response& head) {
  const std::string coding = head.headers.Find("Content-Encoding").value_or("identity");
  if (coding == "identity" || coding.empty()) return absl::OkStatus();
  return DataLoss("{} answered with Content-Encoding {}, which nobody asked for",
                  HostOfUrl(head.url), PrintableAscii(coding, kMaxHeaderShown));
}

}  // namespace

std::string RangeTransfer::RangeHeader() const {
  return fmt::format("bytes={}-{}", first_, cursor_.end - 1);
}

absl::Status RangeTransfer::Check(const http::Response& head) {
  host_ = HostOfUrl(head.url);
  RETURN_IF_ERROR(CheckCoding(head));
  if (head.status == 206) return CheckPart(head);
  if (head.status == 200) return CheckWhole(head);
  return DataLoss("{} answered {} in place of 206", host_, head.status);
}

absl::Status RangeTransfer::CheckPart(const http::Response& head) const {
  const std::string range = head.headers.Find("Content-Range").value_or("");
  if (!IsContentRange(range, first_, cursor_.end, cursor_.blob_size))
    return DataLoss("{} answered with Content-Range \"{}\" in place of \"bytes {}-{}/{}\"", host_,
                    PrintableAscii(range, kMaxHeaderShown), first_, cursor_.end - 1,
                    cursor_.blob_size);
  return CheckLength(head, cursor_.end - first_);
}

absl::Status RangeTransfer::CheckWhole(const http::Response& head) {
  RETURN_IF_ERROR(CheckLength(head, cursor_.blob_size));
  if (first_ > max_skip_) {
    ignores_ranges_ = true;
    return FailedPrecondition("{} does not do ranges, and byte {} is too far to read up to", host_,
                              first_);
  }
  whole_ = true;
  skip_ = first_;
  return absl::OkStatus();
}

absl::Status RangeTransfer::Take(ByteSpan bytes) {
  const size_t skipped = std::min<uint64_t>(skip_, bytes.size());
  skip_ -= skipped;
  bytes = bytes.subspan(skipped);
  const ByteSpan wanted = bytes.first(std::min<uint64_t>(bytes.size(), cursor_.end - cursor_.next));
  if (!wanted.empty()) {
    cursor_.sink_status = cursor_.sink(wanted);
    RETURN_IF_ERROR(cursor_.sink_status);
    cursor_.next += wanted.size();
  }
  if (!whole_ && wanted.size() < bytes.size())
    return DataLoss("{} sent more than the {} bytes that it announced", host_,
                    cursor_.end - first_);
  // The end of the blob comes by itself, and leaves the connection whole.
  enough_ =
      whole_ && cursor_.done() && (cursor_.end < cursor_.blob_size || wanted.size() < bytes.size());
  return enough_ ? Cancelled("enough") : absl::OkStatus();
}

absl::Status RangeTransfer::Finish(const absl::StatusOr<http::Response>& result) const {
  if (enough_) return absl::OkStatus();
  RETURN_IF_ERROR(result.status());
  if (result->status / 100 != 2) return FailedPrecondition("no success");
  if (cursor_.done()) return absl::OkStatus();
  return Unavailable("{} ended its answer at byte {} of {} to {}", host_, cursor_.next, first_,
                     cursor_.end - 1);
}

}  // namespace kapsule::registry
