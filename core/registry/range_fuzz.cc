#include <algorithm>
#include <cstdint>

#include "core/registry/range_transfer.h"

// An answer to a request for bytes 10 to 19 of 100: lines of headers, an empty line,
// the body.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kapsule;
  std::string_view text(reinterpret_cast<const char*>(data), size);
  http::Response head;
  head.url = "https://a.example/v2/x";
  head.status = 206;
  for (size_t end; (end = text.find('\n')) != std::string_view::npos;) {
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    if (line.empty()) break;
    if (line == "200") head.status = 200;
    const size_t colon = std::min(line.find(':'), line.size());
    head.headers.Add(std::string(line.substr(0, colon)),
                     std::string(line.substr(std::min(colon + 2, line.size()))));
  }
  size_t taken = 0;
  const http::Sink sink = [&](ByteSpan bytes) {
    taken += bytes.size();
    return absl::OkStatus();
  };
  registry::RangeCursor cursor{.next = 10, .end = 20, .blob_size = 100, .sink = sink};
  registry::RangeTransfer transfer(cursor, 50);
  absl::Status status = transfer.Check(head);
  if (status.ok()) status = transfer.Take(AsBytes(text));
  const bool whole = head.status == 200;
  if (taken > 10 || cursor.next != 10 + taken) __builtin_trap();
  if (status.ok() && !whole && text.size() > 10) __builtin_trap();
  if (transfer.Finish(head).ok() && taken != 10) __builtin_trap();
  return 0;
}
