// A reader of EROFS metadata for tests: shares nothing with the writer, and
// believes nothing that it reads.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/base/status.h"

namespace kapsule::view {

struct WalkResult {
  size_t files = 0, directories = 0, symlinks = 0;  // inodes
  size_t names = 0;                                 // without "." and ".."
};

// Walks the whole tree of `metadata`, in front of a tar that makes a view of
// `view_size` bytes. DataLoss says what is wrong: a range outside of metadata or
// view or with two uses, an inode or tail that crosses a block, names that are
// unsorted or no names, wrong types and link counts, a directory with two parents
// (so no cycle).
absl::StatusOr<WalkResult> WalkMetadata(std::string_view metadata, uint64_t view_size);

}  // namespace kapsule::view
