// The folder of the cache: one file for each blob, named by its digest, and the
// list of its blocks beside it. No other name is ever opened there, no link
// followed, nothing outside of it touched.
#pragma once

#include <absl/time/time.h>
#include <sys/types.h>

#include <filesystem>
#include <memory>
#include <vector>

#include "core/base/file.h"
#include "core/oci/digest.h"

namespace kapsule::fetch {

// Thread-safe, but for two calls about one blob.
class CacheFolder {
 public:
  // Makes `path` where it is missing, for `owner` and `group` alone. Waits at most
  // `wait` for another process that uses it: one writes at a time.
  //   FailedPrecondition  it belongs to somebody else, or is in use still
  static absl::StatusOr<std::unique_ptr<CacheFolder>> Open(const std::filesystem::path& path,
                                                           uid_t owner, gid_t group,
                                                           absl::Duration wait);

  struct Entry {
    oci::Digest blob;
    uint64_t bytes = 0;  // that it takes on the disk
    absl::Time used;     // when its list was written or touched
  };
  // The blobs that are there. Whatever else lies there is removed, and the log
  // says so: temporary files, lists without blob, what is no regular file of ours.
  absl::StatusOr<std::vector<Entry>> Scan() const;

  // The blob's file. NotFound; FailedPrecondition: no regular file.
  absl::StatusOr<UniqueFd> OpenBlob(const oci::Digest& blob, int flags) const;
  // A new one of `size` bytes, all hole. A list that was there is removed before.
  absl::StatusOr<UniqueFd> CreateBlob(const oci::Digest& blob, uint64_t size) const;

  absl::StatusOr<std::string> ReadList(const oci::Digest& blob) const;
  // Atomically; it stays when this has returned OK.
  absl::Status WriteList(const oci::Digest& blob, ByteSpan bytes) const;
  // As if the list had been written now: who comes later sees what is in use.
  void Touch(const oci::Digest& blob) const;
  absl::Status RemoveList(const oci::Digest& blob) const;
  // The list first, then the blob; those who have it open keep it. OK where
  // neither is there.
  absl::Status Remove(const oci::Digest& blob) const;

  uint64_t FreeBytes() const;  // of the file system

 private:
  explicit CacheFolder(UniqueFd folder) : folder_(std::move(folder)) {}
  absl::Status Sync() const;
  absl::Status Unlink(const std::string& name) const;
  const UniqueFd folder_;  // holds the lock
};

}  // namespace kapsule::fetch
