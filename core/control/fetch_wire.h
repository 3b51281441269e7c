// The packets between kapsule-fuse and kapsule-fetch: which blocks of which blob
// are waited for, and which can be read from the blob's file in the cache. One a
// packet on a SOCK_SEQPACKET pair, little endian, of a fixed layout each; nothing
// is shared but the file. Packets may be lost when a process dies, so each of them
// may be sent again.
#pragma once

#include <bitset>
#include <cstdint>
#include <string>
#include <variant>

#include "core/base/bytes.h"
#include "core/base/status.h"
#include "core/oci/digest.h"

namespace kapsule::control {

// Blocks are numbered from the start of the blob.
inline constexpr uint32_t kMaxFetchBlocks = 2048;  // in one packet
inline constexpr size_t kMaxFetchText = 512;
// A blob has at most 2^43 bytes in blocks of 4 KiB or more.
inline constexpr uint64_t kMaxFetchBlock = uint64_t{1} << 31;

// The file of a blob in the cache: after a restart, or when it was removed, there is
// another one. Both processes have it open, so none gets its inode meanwhile.
struct FetchFile {
  uint64_t device = 0, inode = 0;
  bool operator==(const FetchFile&) const = default;
};

// kapsule-fuse asks:
struct FetchWant {  // reads wait for these
  uint64_t first = 0;
  uint32_t count = 1;
};
struct FetchSuspect {  // read from the file, it failed its tags
  uint64_t block = 0;
};
struct FetchDropped {  // answers that FetchDrop: none of these is being read, or will be
                       // before a FetchHave that was sent after it
  uint64_t first = 0;
  uint32_t count = 1;
  uint64_t question = 0;
};
// kapsule-fetch says:
struct FetchHave {  // the set ones can be read in `file`; others may be there or not
  uint64_t first = 0;
  std::bitset<kMaxFetchBlocks> blocks;
  FetchFile file = {};
};
struct FetchFailed {  // reads that wait for these fail; Aborted: the blob is not open, yet,
                      // and they are to be asked for again
  uint64_t first = 0;
  uint32_t count = 1;
  absl::Status why;  // not OK; the text is cut at kMaxFetchText
};
struct FetchChecked {  // answers FetchSuspect: the file has what the index names
  uint64_t block = 0;
  FetchFile file = {};
};
struct FetchDrop {  // is about to be forgotten, once FetchDropped has come
  uint64_t first = 0;
  uint32_t count = 1;
  uint64_t question = 0;  // greater than in any before
};

struct FetchPacket {
  oci::Digest blob;
  std::variant<FetchWant, FetchSuspect, FetchDropped, FetchHave, FetchFailed, FetchChecked,
               FetchDrop>
      body;
};

inline constexpr size_t kMaxFetchPacket = 1024;  // bytes

Bytes EncodeFetchPacket(const FetchPacket& packet);
// InvalidArgument: another length than its kind has, an unknown kind or code, a
// count of 0 or above kMaxFetchBlocks, a block above kMaxFetchBlock.
absl::StatusOr<FetchPacket> DecodeFetchPacket(ByteSpan bytes);

//   Unavailable        the peer is gone
//   ResourceExhausted  (kNoWait) its socket is full
enum class FetchSend { kWait, kNoWait };
absl::Status SendFetchPacket(int socket, const FetchPacket& packet, FetchSend how);
// Waits for one. InvalidArgument as DecodeFetchPacket(); Unavailable: the peer is gone.
absl::StatusOr<FetchPacket> ReceiveFetchPacket(int socket);

}  // namespace kapsule::control
