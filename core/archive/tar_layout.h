// Where the members of a layer's tar stand: POSIX pax headers, and padding that
// aligns the data of files for direct I/O (docs/format.md, "Layer stream").
#pragma once

#include <map>
#include <span>
#include <string>

#include "core/archive/toc.h"
#include "core/base/bytes.h"

namespace kapsule::archive {

inline constexpr uint64_t kTarBlock = 512;

// Data of files of at least this size begins on 64 KiB, of others on 4 KiB.
inline constexpr uint64_t kLargeFile = 1 << 20;

// Where members stand: the one account that prediction and writing share.
class TarLayout {
 public:
  // The header bytes of the next member. Sets entry.offset of a file, and gives
  // a hard link the attributes of its file, which must stand before it.
  //   InvalidArgument  an entry that no TOC may hold, a hard link to nothing, a
  //                    tar beyond kMaxTarLength
  absl::StatusOr<std::string> Place(TocEntry& entry);
  // Bytes up to here, the padded data of placed files included.
  uint64_t length() const { return length_; }

 private:
  absl::Status TakeFileAttributes(TocEntry& link) const;
  struct Attributes {
    uint32_t mode, uid, gid;
    int64_t mtime;
  };
  uint64_t length_ = 0;
  std::map<std::string, Attributes> files_;
};

// The length of the tar that a TarWriter will write for `entries`, in their
// order; sets the entries' offsets. Together with SerializeToc() and LayoutOf()
// the size of a blob is known before its first byte. InvalidArgument as Place()
// and CheckToc(): what is refused at the end of writing is refused here.
absl::StatusOr<uint64_t> PlanTar(std::span<TocEntry> entries);

}  // namespace kapsule::archive
