// The blobs that kapsule-fetch has open for us, and those of them that it, or
// kapsule-fuse, is to hear of again.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <functional>
#include <map>
#include <vector>

#include "core/base/file.h"
#include "snapshotter/blob_open_request.h"
#include "snapshotter/control_channel.h"
#include "snapshotter/remote_blob.h"

namespace kapsule::snapshotter {

// Thread-safe.
class OpenBlobs {
 public:
  // How long an opening may take: the first time what is in the cache comes, and is not
  // to stand behind what a registry is asked for.
  static constexpr absl::Duration kFirstPatience = absl::Milliseconds(300);
  static constexpr absl::Duration kPatience = absl::Seconds(2);
  static constexpr size_t kAtOnce = 8;

  struct Calls {
    CredentialsOf credentials;
    // Gives the file of a blob to kapsule-fuse: it may be another one than before.
    //   NotFound  no layer of it is open there, yet
    std::function<absl::Status(const oci::Digest&, const UniqueFd&)> use_file;
  };
  // `close` has kapsule-fetch close a blob that was closed here while it was opened again,
  // unless it is being opened anew.
  OpenBlobs(Calls calls, std::function<void(const oci::Digest&)> close)
      : calls_(std::move(calls)), close_(std::move(close)) {}

  // `blob`, with the images of an earlier opening that is not closed.
  RemoteBlob WithKnownImages(RemoteBlob blob) const ABSL_LOCKS_EXCLUDED(mu_);
  void Add(const RemoteBlob& blob) ABSL_LOCKS_EXCLUDED(mu_);
  void Remove(const oci::Digest& digest) ABSL_LOCKS_EXCLUDED(mu_);

  // It, or each, is to be opened again, and its file given to kapsule-fuse.
  void Doubt(const oci::Digest& digest) ABSL_LOCKS_EXCLUDED(mu_);
  void DoubtAll() ABSL_LOCKS_EXCLUDED(mu_);
  bool AnyDoubted() const ABSL_LOCKS_EXCLUDED(mu_);

  // Opens those that are doubted, kAtOnce at a time, while `go_on`, which any thread
  // may be asked. One that failed stays doubted, and comes last the next time.
  void Reopen(FetchChannel& channel, const std::function<bool()>& go_on) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // A round of those that were tried, or not.
  void Round(FetchChannel& channel, const std::function<bool()>& go_on, bool tried)
      ABSL_LOCKS_EXCLUDED(mu_);
  std::vector<RemoteBlob> DoubtedOnes(bool tried) const ABSL_LOCKS_EXCLUDED(mu_);
  void ReopenOne(FetchChannel& channel, const RemoteBlob& blob, bool tried)
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status OpenAndTell(FetchChannel& channel, const RemoteBlob& blob,
                           absl::Time deadline) const;
  bool NoteTried(const oci::Digest& digest, bool ok) ABSL_LOCKS_EXCLUDED(mu_);

  const Calls calls_;
  const std::function<void(const oci::Digest&)> close_;
  mutable absl::Mutex mu_;  // never held across I/O
  std::map<oci::Digest, RemoteBlob> blobs_ ABSL_GUARDED_BY(mu_);
  std::map<oci::Digest, bool> doubted_ ABSL_GUARDED_BY(mu_);  // of these; true: tried
};

}  // namespace kapsule::snapshotter
