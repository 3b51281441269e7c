// What a layer is opened with, by descriptors that others made: its blob and its record
// (control_wire.h).
#pragma once

#include <memory>

#include "core/base/file.h"
#include "core/oci/annotations.h"
#include "snapshotter/fuse/remote_blob.h"

namespace kapsule::fuse {

struct Blob {
  std::unique_ptr<ReaderAt> bytes;
  control::FetchFile id;
  int fd = -1;  // of `bytes`
};
// Leaves `fd` to its owner. InvalidArgument: not a regular file, or not open for reading
// alone.
absl::StatusOr<Blob> AdoptBlob(const UniqueFd& fd);

// A record, whose annotations the keyprovider takes as a memfd of their own.
struct Record {
  UniqueFd annotations;
  bool remote = false;
};
// These give InvalidArgument where the memfd is not sealed, too long or malformed.
absl::StatusOr<Record> ReadRecord(const UniqueFd& fd);
absl::StatusOr<oci::Annotations> ReadAnnotations(const UniqueFd& fd);
absl::StatusOr<oci::IndexRef> IndexOf(const oci::Annotations& annotations);

// What a view was made from, by the record that the holder has. Unavailable: that is bad.
absl::StatusOr<oci::IndexRef> HeldIndex(const UniqueFd& record);
// The same record of a layer that is not remote any more.
absl::StatusOr<UniqueFd> LocalRecord(const UniqueFd& record);

}  // namespace kapsule::fuse
