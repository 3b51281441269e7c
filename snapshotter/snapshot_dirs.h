// The directories of snapshots: <root>/l/<id>/fs and, for active ones,
// <root>/l/<id>/work; for those of user namespaces <root>/l/<id>/all, a link to
// <root>/l. They stand under one short parent because containerd
// shortens a long lowerdir= by what all have in common.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <thread>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include "core/base/status.h"

namespace kapsule::snapshotter {

// Crash order: a directory is made as "new-…" and renamed to its id inside the
// transaction that records it; removed by renaming it to "rm-…" after the
// transaction that forgets it; deleted in the background. A power failure may keep the
// record and lose the directory, but then also all that was put into it. Thread-safe.
class SnapshotDirs {
 public:
  // A directory that has no id yet; deleted unless placed.
  class Staged {
   public:
    Staged(Staged&& other) noexcept : path_(std::exchange(other.path_, {})) {}
    ~Staged();

   private:
    friend class SnapshotDirs;
    explicit Staged(std::filesystem::path path) : path_(std::move(path)) {}
    std::filesystem::path path_;
  };

  static absl::StatusOr<std::unique_ptr<SnapshotDirs>> Open(const std::filesystem::path& root);
  // Stops deleting; what is left is found by the next Sweep().
  ~SnapshotDirs();

  std::filesystem::path Fs(int64_t id) const { return Of(id) / "fs"; }
  std::filesystem::path Work(int64_t id) const { return Of(id) / "work"; }
  // Fs() of `below` by way of a snapshot that has a link.
  std::filesystem::path LinkedFs(int64_t id, int64_t below) const {
    return Of(id) / "all" / std::to_string(below) / "fs";
  }
  // A directory that stays empty.
  std::filesystem::path Empty() const { return folder_.parent_path() / "empty"; }
  // The snapshot whose Fs() or LinkedFs() is written `path`, exactly so.
  std::optional<int64_t> IdOf(std::string_view path) const;

  // Makes fs with mode 0755 and this owner, work and the link where asked for.
  absl::StatusOr<Staged> Stage(bool work, uid_t uid, gid_t gid, bool link = false) const;

  // Renames to `id`. Only inside the transaction that makes `id`.
  absl::Status Place(Staged& staged, int64_t id) const;
  // From now on a power failure loses no directory that has been placed.
  absl::Status Sync() const;

  // Takes the directory of a forgotten snapshot away and deletes it in the
  // background. Nothing is mounted there any more.
  void Discard(int64_t id);

  // At start: gives up what a crash left, that is everything but `ids`. Returns those of
  // them that have no directory.
  absl::StatusOr<std::set<int64_t>> Sweep(const std::set<int64_t>& ids);

  // Deletes what has been discarded, and waits for it.
  void DeleteDiscarded() ABSL_LOCKS_EXCLUDED(deleting_);

 private:
  explicit SnapshotDirs(std::filesystem::path folder);
  std::filesystem::path Of(int64_t id) const { return folder_ / std::to_string(id); }
  void DiscardPath(const std::filesystem::path& path) const;
  void WakeDeleter();
  void DeleteInBackground();

  const std::filesystem::path folder_;

  absl::Mutex deleting_;  // held while trees are deleted; nothing else waits for it

  absl::Mutex mu_;
  bool wanted_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  absl::CondVar woken_;

  std::thread deleter_;
};

}  // namespace kapsule::snapshotter
