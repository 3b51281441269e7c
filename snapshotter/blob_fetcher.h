// The kapsule-fetch process as the snapshotter sees it: started, asked for blobs,
// watched and started again.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>
#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "core/base/file.h"
#include "snapshotter/control_channel.h"
#include "snapshotter/daemon_process.h"
#include "snapshotter/open_blobs.h"
#include "snapshotter/remote_blob.h"

namespace kapsule::snapshotter {

// Thread-safe.
class BlobFetcher {
 public:
  struct Options {
    std::filesystem::path program;
    std::vector<std::string> arguments;
    // Names the process to the next run, which ends it: two must not have one cache.
    std::filesystem::path pid_file;
    // Gives a new data socket to kapsule-fuse; tried again where it fails. Called from
    // the watching thread.
    std::function<absl::Status(const UniqueFd&)> hand_over;
    // What blobs are opened again with. use_file also after each hand_over: a new process
    // may have other files.
    OpenBlobs::Calls blobs;
  };
  // Ends the process of an earlier run and starts one in the background: reads of
  // kapsule-fuse wait meanwhile.
  explicit BlobFetcher(Options options);
  // Ends the process, except after Leave().
  ~BlobFetcher();
  // From now on the end of this object lets the process serve kapsule-fuse on.
  void Leave() ABSL_LOCKS_EXCLUDED(mu_);

  // The blob's file in the cache, read-only, with what a mount needs first. From
  // then on each new process gets the blob too, until Close().
  //   Unavailable  no kapsule-fetch, or no registry; or Close() came meanwhile
  //   others       as kapsule-fetch says: PermissionDenied, NotFound, DataLoss, …
  absl::StatusOr<UniqueFd> Open(const RemoteBlob& opened, absl::Time deadline)
      ABSL_LOCKS_EXCLUDED(mu_);
  // Nothing has the blob mounted any more. Where Open() was not asked for it, this and
  // Forget() do nothing.
  void Close(const oci::Digest& digest) ABSL_LOCKS_EXCLUDED(mu_);
  // All of the blob is elsewhere, where it is read from now on.
  void Forget(const oci::Digest& digest) ABSL_LOCKS_EXCLUDED(mu_);

  // There is a new FUSE connection: kapsule-fuse needs a data socket again.
  void HandOverAgain() ABSL_LOCKS_EXCLUDED(mu_);
  // Another kapsule-fuse has taken the connection over: what is open is opened again, so
  // that it has the file of every blob, whatever its predecessor was told last.
  void GiveFilesAgain() ABSL_LOCKS_EXCLUDED(mu_);

  absl::StatusOr<v1::FetchStats> Stats(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  // Of the process; -1 while there is none.
  pid_t pid() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  using Channel = std::shared_ptr<FetchChannel>;

  void Watch();
  void EndEarlier() const;
  absl::Status StartProcess() ABSL_LOCKS_EXCLUDED(mu_);
  void DropProcess() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status HandOver(FetchChannel& channel);
  bool IsCalm() ABSL_LOCKS_EXCLUDED(mu_);
  // The number that asked_for_ has it under.
  absl::StatusOr<uint64_t> BeginOpen(const oci::Digest& digest, absl::Time deadline)
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<UniqueFd> AskForFile(const RemoteBlob& blob, absl::Time deadline, Channel* from)
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<UniqueFd> EndOpen(const RemoteBlob& blob, uint64_t opening,
                                   absl::StatusOr<UniqueFd> file, const Channel& from)
      ABSL_LOCKS_EXCLUDED(mu_);
  void CloseUnlessAskedFor(const oci::Digest& digest) ABSL_LOCKS_EXCLUDED(mu_);
  void TellClosed(const oci::Digest& digest) ABSL_LOCKS_EXCLUDED(mu_);
  void Tell(v1::FetchRequest request) ABSL_LOCKS_EXCLUDED(mu_);
  Channel AwaitChannel(const FetchChannel* not_this, absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  bool Pause(absl::Duration duration) ABSL_LOCKS_EXCLUDED(mu_);  // false: stopping

  const Options options_;
  OpenBlobs blobs_;
  std::unique_ptr<DaemonProcess> process_;  // of the watching thread

  absl::Mutex mu_;  // never held across I/O
  Channel channel_ ABSL_GUARDED_BY(mu_);
  pid_t pid_ ABSL_GUARDED_BY(mu_) = -1;  // of the process behind it
  // What was asked for and not closed since, each by the number of its first opening.
  std::map<oci::Digest, uint64_t> asked_for_ ABSL_GUARDED_BY(mu_);
  std::multiset<oci::Digest> closing_ ABSL_GUARDED_BY(mu_);  // whose Close is being told
  uint64_t last_opening_ ABSL_GUARDED_BY(mu_) = 0;
  bool hand_over_ ABSL_GUARDED_BY(mu_) = false;  // is due
  bool stopping_ ABSL_GUARDED_BY(mu_) = false, leaving_ ABSL_GUARDED_BY(mu_) = false;
  bool changed_ ABSL_GUARDED_BY(mu_) = false;  // wakes the watching thread

  std::thread watcher_;  // uses all of the above
};

}  // namespace kapsule::snapshotter
