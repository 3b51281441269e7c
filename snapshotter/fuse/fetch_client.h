// kapsule-fetch as kapsule-fuse sees it: one socket, and the blobs that come
// through it.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <deque>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "snapshotter/fuse/remote_blob.h"

namespace kapsule::fuse {

// Thread-safe; no lock is held over I/O or a callback.
class FetchClient {
 public:
  struct Options {
    // How long reads wait while there is no kapsule-fetch; then they fail, further
    // ones at once, until there is one. So long they also wait for the file of one.
    absl::Duration grace = absl::Seconds(60);
    absl::Duration repeat = absl::Seconds(3);  // how often what is waited for is said again
  };
  // Packets that wait to be sent; more are lost, and said again.
  static constexpr size_t kMaxOutbox = 16 * 1024;

  explicit FetchClient(const Options& options);
  // Ends its thread. Outlives the blobs.
  ~FetchClient();

  // From now on packets are received, by a thread of this object; nothing is before,
  // as another process may do so. Once.
  //   ResourceExhausted  no thread
  absl::Status Start();
  // In place of an earlier socket, also of another process.
  void UseSocket(UniqueFd socket) ABSL_LOCKS_EXCLUDED(mu_);

  // The blob in kapsule-fetch's file, for a LayerReader. All readers of a digest
  // share one RemoteBlob; its errors.
  absl::StatusOr<std::unique_ptr<ReaderAt>> Open(const oci::Digest& digest, RemoteBlob::File file,
                                                 const archive::IndexHeader& header)
      ABSL_LOCKS_EXCLUDED(mu_);
  // Null where no reader of it is open.
  std::shared_ptr<RemoteBlob> Find(const oci::Digest& digest) const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  using Socket = std::shared_ptr<const UniqueFd>;
  using BlobPtr = std::shared_ptr<RemoteBlob>;

  void Send(control::FetchPacket packet) ABSL_LOCKS_EXCLUDED(mu_);
  void Wake() const;
  std::vector<BlobPtr> Blobs() ABSL_LOCKS_EXCLUDED(mu_);

  // The thread.
  void Run();
  bool Round();  // false: to end
  void SayAllAgain(bool fresh) ABSL_LOCKS_EXCLUDED(mu_);
  void FailAllAfterGrace() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Duration UntilNext() const ABSL_LOCKS_EXCLUDED(mu_);
  // False where the socket takes no more just now.
  bool Flush(const Socket& socket) ABSL_LOCKS_EXCLUDED(mu_);
  void Receive(const Socket& socket);
  void Lost(const Socket& socket, const absl::Status& why) ABSL_LOCKS_EXCLUDED(mu_);

  const Options options_;
  const UniqueFd wake_;  // an eventfd: something below has changed

  mutable absl::Mutex mu_;                   // taken after a blob's
  Socket socket_ ABSL_GUARDED_BY(mu_);       // null: none
  bool fresh_ ABSL_GUARDED_BY(mu_) = false;  // nothing has been said through it
  absl::Time none_since_ ABSL_GUARDED_BY(mu_);
  std::deque<control::FetchPacket> outbox_ ABSL_GUARDED_BY(mu_);
  std::map<oci::Digest, std::weak_ptr<RemoteBlob>> blobs_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  absl::Time next_repeat_;  // of the thread
  std::thread thread_;
};

}  // namespace kapsule::fuse
