#include "core/control/fetch_wire.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "core/base/printable.h"
#include "core/base/unix_socket.h"

namespace kapsule::control {
namespace {

// kind, 7 bytes of zeros, the digest, the first block; then what the kind has:
// count; count, question; file; file, 2048 bits; count, code, text. A file is its device
// and inode.
constexpr size_t kDigestAt = 8, kFirstAt = 40, kBodyAt = 48;
constexpr size_t kQuestionAt = kBodyAt + 4, kQuestionEnd = kQuestionAt + 8;
constexpr size_t kFileEnd = kBodyAt + 16, kBitsBytes = kMaxFetchBlocks / 8;
constexpr size_t kCodeAt = kBodyAt + 4, kTextAt = kBodyAt + 8;

enum Kind : uint8_t {
  kWant = 1,
  kSuspect = 2,
  kDropped = 3,
  kHave = 4,
  kFailed = 5,
  kChecked = 6,
  kDrop = 7,
};

void Put(Bytes& out, uint8_t kind, uint64_t first) {
  out[0] = std::byte{kind};
  StoreLe(out.data() + kFirstAt, first);
}

void PutRange(Bytes& out, uint8_t kind, uint64_t first, uint32_t count) {
  out.resize(kBodyAt + 4);
  Put(out, kind, first);
  StoreLe(out.data() + kBodyAt, count);
}

template <typename Drop>
void PutDrop(Bytes& out, uint8_t kind, const Drop& drop) {
  PutRange(out, kind, drop.first, drop.count);
  out.resize(kQuestionEnd);
  StoreLe(out.data() + kQuestionAt, drop.question);
}

void PutOfFile(Bytes& out, uint8_t kind, uint64_t first, const FetchFile& file) {
  out.resize(kFileEnd);
  Put(out, kind, first);
  StoreLe(out.data() + kBodyAt, file.device);
  StoreLe(out.data() + kBodyAt + 8, file.inode);
}

struct Encoder {
  Bytes& out;
  void operator()(const FetchWant& p) { PutRange(out, kWant, p.first, p.count); }
  void operator()(const FetchDropped& p) { PutDrop(out, kDropped, p); }
  void operator()(const FetchDrop& p) { PutDrop(out, kDrop, p); }
  void operator()(const FetchSuspect& p) { Put(out, kSuspect, p.block); }
  void operator()(const FetchChecked& p) { PutOfFile(out, kChecked, p.block, p.file); }
  void operator()(const FetchHave& p) {
    PutOfFile(out, kHave, p.first, p.file);
    out.resize(kFileEnd + kBitsBytes);
    for (size_t i = 0; i < kMaxFetchBlocks; ++i)
      if (p.blocks[i]) out[kFileEnd + i / 8] |= std::byte{1} << i % 8;
  }
  void operator()(const FetchFailed& p) {
    PutRange(out, kFailed, p.first, p.count);
    const std::string text = PrintableAscii(Message(p.why), kMaxFetchText);
    out.resize(kTextAt + text.size());
    StoreLe(out.data() + kCodeAt, static_cast<uint32_t>(p.why.code()));
    std::copy_n(AsBytes(text).data(), text.size(), out.data() + kTextAt);
  }
};

absl::Status CheckBlocks(uint64_t first, uint64_t count) {
  if (count == 0 || count > kMaxFetchBlocks)
    return InvalidArgument("a fetch packet about {} blocks", count);
  if (first > kMaxFetchBlock || count - 1 > kMaxFetchBlock - first)
    return InvalidArgument("a fetch packet about block {}", first);
  return absl::OkStatus();
}

template <typename Range>
absl::StatusOr<Range> TakeRange(ByteSpan bytes) {
  if (bytes.size() != kBodyAt + 4)
    return InvalidArgument("a fetch packet of {} bytes", bytes.size());
  const auto first = LoadLe<uint64_t>(bytes.data() + kFirstAt);
  const auto count = LoadLe<uint32_t>(bytes.data() + kBodyAt);
  RETURN_IF_ERROR(CheckBlocks(first, count));
  Range range;
  range.first = first;
  range.count = count;
  return range;
}

template <typename Drop>
absl::StatusOr<Drop> TakeDrop(ByteSpan bytes) {
  if (bytes.size() != kQuestionEnd)
    return InvalidArgument("a fetch packet of {} bytes", bytes.size());
  ASSIGN_OR_RETURN(Drop drop, TakeRange<Drop>(bytes.first(kQuestionAt)));
  drop.question = LoadLe<uint64_t>(bytes.data() + kQuestionAt);
  return drop;
}

absl::StatusOr<uint64_t> TakeFirst(ByteSpan bytes, size_t size) {
  if (bytes.size() != size) return InvalidArgument("a fetch packet of {} bytes", bytes.size());
  const auto block = LoadLe<uint64_t>(bytes.data() + kFirstAt);
  RETURN_IF_ERROR(CheckBlocks(block, 1));
  return block;
}

FetchFile FileIn(ByteSpan bytes) {
  return {LoadLe<uint64_t>(bytes.data() + kBodyAt), LoadLe<uint64_t>(bytes.data() + kBodyAt + 8)};
}

absl::StatusOr<FetchSuspect> TakeSuspect(ByteSpan bytes) {
  ASSIGN_OR_RETURN(const uint64_t block, TakeFirst(bytes, kBodyAt));
  return FetchSuspect{block};
}

absl::StatusOr<FetchChecked> TakeChecked(ByteSpan bytes) {
  ASSIGN_OR_RETURN(const uint64_t block, TakeFirst(bytes, kFileEnd));
  return FetchChecked{block, FileIn(bytes)};
}

absl::StatusOr<FetchHave> TakeHave(ByteSpan bytes) {
  ASSIGN_OR_RETURN(const uint64_t first, TakeFirst(bytes, kFileEnd + kBitsBytes));
  FetchHave have{first, {}, FileIn(bytes)};
  for (size_t i = 0; i < kMaxFetchBlocks; ++i)
    have.blocks[i] = (bytes[kFileEnd + i / 8] >> i % 8 & std::byte{1}) != std::byte{0};
  return have;
}

absl::StatusOr<FetchFailed> TakeFailed(ByteSpan bytes) {
  if (bytes.size() < kTextAt || bytes.size() > kTextAt + kMaxFetchText)
    return InvalidArgument("a fetch packet of {} bytes", bytes.size());
  ASSIGN_OR_RETURN(const FetchWant blocks, TakeRange<FetchWant>(bytes.first(kCodeAt)));
  const auto code = LoadLe<uint32_t>(bytes.data() + kCodeAt);
  if (code == 0 || code > 16) return InvalidArgument("a fetch packet with code {}", code);
  const std::string text = PrintableAscii(AsText(bytes.subspan(kTextAt)), kMaxFetchText);
  return FetchFailed{blocks.first, blocks.count,
                     absl::Status(static_cast<absl::StatusCode>(code), text)};
}

template <typename Body>
absl::StatusOr<FetchPacket> PacketOf(const oci::Digest& blob, absl::StatusOr<Body> body) {
  if (!body.ok()) return body.status();
  return FetchPacket{blob, *std::move(body)};
}

}  // namespace

Bytes EncodeFetchPacket(const FetchPacket& packet) {
  Bytes out(kBodyAt);
  std::copy_n(packet.blob.raw().data(), packet.blob.raw().size(), out.data() + kDigestAt);
  std::visit(Encoder{out}, packet.body);
  return out;
}

absl::StatusOr<FetchPacket> DecodeFetchPacket(ByteSpan bytes) {
  if (bytes.size() < kBodyAt) return InvalidArgument("a fetch packet of {} bytes", bytes.size());
  oci::Digest::Raw raw;
  std::copy_n(bytes.data() + kDigestAt, raw.size(), raw.data());
  const oci::Digest blob(raw);
  if (!std::all_of(bytes.data() + 1, bytes.data() + kDigestAt,
                   [](std::byte b) { return b == std::byte{0}; }))
    return InvalidArgument("a fetch packet of another version");
  switch (std::to_integer<uint8_t>(bytes[0])) {
    case kWant:
      return PacketOf(blob, TakeRange<FetchWant>(bytes));
    case kSuspect:
      return PacketOf(blob, TakeSuspect(bytes));
    case kDropped:
      return PacketOf(blob, TakeDrop<FetchDropped>(bytes));
    case kHave:
      return PacketOf(blob, TakeHave(bytes));
    case kFailed:
      return PacketOf(blob, TakeFailed(bytes));
    case kChecked:
      return PacketOf(blob, TakeChecked(bytes));
    case kDrop:
      return PacketOf(blob, TakeDrop<FetchDrop>(bytes));
  }
  return InvalidArgument("a fetch packet of kind {}", std::to_integer<int>(bytes[0]));
}

absl::Status SendFetchPacket(int socket, const FetchPacket& packet, FetchSend how) {
  const Bytes bytes = EncodeFetchPacket(packet);
  const int flags = MSG_NOSIGNAL | (how == FetchSend::kNoWait ? MSG_DONTWAIT : 0);
  ssize_t n;
  do {
    n = send(socket, bytes.data(), bytes.size(), flags);
  } while (n < 0 && errno == EINTR);
  if (n >= 0) return absl::OkStatus();
  if (errno == EAGAIN || errno == EWOULDBLOCK)
    return ResourceExhausted("the fetch socket is full: its peer does not receive");
  return ErrnoStatus(errno, "send a fetch packet");
}

absl::StatusOr<FetchPacket> ReceiveFetchPacket(int socket) {
  std::array<std::byte, kMaxFetchPacket> bytes;
  ASSIGN_OR_RETURN(const size_t size, ReceivePacketInto(socket, bytes));
  return DecodeFetchPacket(ByteSpan(bytes).first(size));
}

}  // namespace kapsule::control
