// A blob that comes from its registry block by block: kapsule-fetch's file of it,
// and which of its blocks can be read there.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <functional>
#include <list>
#include <memory>
#include <set>
#include <vector>

#include "core/archive/index.h"
#include "core/base/file.h"
#include "core/control/fetch_wire.h"

namespace kapsule::fuse {

// Blocks are those of the index, which cover the tar and its TOC. What stands
// behind, the index itself, is there where it is needed: a block is announced after
// the pages that its chunks are checked by. Thread-safe; the lock is never held
// over I/O or a callback.
class RemoteBlob {
 public:
  static constexpr uint64_t kMaxBlocks = uint64_t{1} << 23;  // a bit each
  static constexpr size_t kMaxDrops = 1024;                  // that wait for reads

  struct File {
    std::shared_ptr<const ReaderAt> bytes;
    control::FetchFile id;
    int fd = -1;  // of `bytes`, which owns it; -1: it is always the current one
  };
  using Then = std::function<void(absl::Status)>;
  // Keeps the order of packets, never waits and throws nothing: it is called with
  // the lock held.
  using Send = std::function<void(control::FetchPacket)>;

  // Knows no block of `file` yet. What kapsule-fetch says of another file does not count:
  // who waits for it does so for `patience`, or until UseFile().
  //   Unimplemented  more than kMaxBlocks
  static absl::StatusOr<std::shared_ptr<RemoteBlob>> Make(
      const oci::Digest& digest, File file, const archive::IndexHeader& header, Send send,
      absl::Duration patience = absl::Seconds(60));

  // For a LayerReader. Its ReadAt() gives Unavailable where a block is not there,
  // or not any more.
  static std::unique_ptr<ReaderAt> ReaderOf(std::shared_ptr<RemoteBlob> blob);

  // InvalidArgument: `header` has other blocks.
  absl::Status CheckBlocks(const archive::IndexHeader& header) const;
  // The file that kapsule-fetch has now; true where it is another one than before. One
  // that was removed since is not taken. InvalidArgument: it is not of this size.
  absl::StatusOr<bool> UseFile(File file) ABSL_LOCKS_EXCLUDED(mu_);
  // A file that has everything: what is waited for is there, and nothing is asked
  // for any more. InvalidArgument: it is not of this size.
  absl::Status UseLocal(std::shared_ptr<const ReaderAt> file) ABSL_LOCKS_EXCLUDED(mu_);

  // What was read of the range is bad: its blocks are away until kapsule-fetch has
  // looked at them. WhenThere() says when they can be read again.
  void Suspect(uint64_t offset, size_t size) ABSL_LOCKS_EXCLUDED(mu_);

  // What kapsule-fetch says of this blob.
  void Handle(const control::FetchPacket& packet) ABSL_LOCKS_EXCLUDED(mu_);
  // Asks again for all that is waited for. Over another connection nothing is left to
  // answer: what is to be dropped is said again.
  void SendAgain(bool another_connection = false) ABSL_LOCKS_EXCLUDED(mu_);
  // Nobody can be asked: whoever waits gets `why`.
  void FailWaiting(const absl::Status& why) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  class Reader;
  struct Blocks {
    uint64_t first = 0, end = 0;
    bool Overlap(const Blocks& other) const { return first < other.end && other.first < end; }
    bool Contain(uint64_t block) const { return first <= block && block < end; }
    bool operator==(const Blocks&) const = default;
  };
  struct Drop {
    Blocks blocks;
    uint64_t question = 0;
  };
  struct Waiter {
    Blocks blocks;
    Then then;
    absl::Time since;
    absl::Status status = {};
  };
  using Waiters = std::list<Waiter>;
  class Reading;

  RemoteBlob(const oci::Digest& digest, File file, const archive::IndexHeader& header, Send send,
             absl::Duration patience);
  absl::Status ReadAt(uint64_t offset, MutableByteSpan out) ABSL_LOCKS_EXCLUDED(mu_);
  bool IsThere(uint64_t offset, size_t size) const ABSL_LOCKS_EXCLUDED(mu_);
  void WhenThere(uint64_t offset, size_t size, Then then) ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<std::shared_ptr<const ReaderAt>> Begin(const Blocks* reading)
      ABSL_LOCKS_EXCLUDED(mu_);
  void End(const Blocks* reading) ABSL_LOCKS_EXCLUDED(mu_);

  static bool IsGone(const File& file);

  Blocks BlocksOf(uint64_t offset, size_t size) const;
  Blocks Inside(uint64_t first, uint64_t count) const;
  bool Has(uint64_t block) const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  bool HasAll(const Blocks& blocks) const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  void Set(uint64_t block, bool there) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Say(decltype(control::FetchPacket::body) body) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SayWant(const Blocks& run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Want(const Blocks& blocks) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WantForWaiters(const Blocks& blocks) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool IsRead(const Drop& drop) const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  void AnswerDrops() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Each returns who has an answer now.
  Waiters OnOtherFile() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Waiters On(const control::FetchHave& have) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Waiters On(const control::FetchFailed& failed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Waiters On(const control::FetchChecked& checked) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Waiters On(const control::FetchDrop& drop) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  template <typename NotForUs>
  Waiters On(const NotForUs&) {
    return {};
  }
  Waiters TakeReady(const Blocks& changed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Those who miss one of the blocks; with a limit, only who has waited for so long.
  Waiters TakeFailed(const Blocks& blocks, const absl::Status& why,
                     absl::Duration waited = absl::ZeroDuration())
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const oci::Digest digest_;
  const uint64_t size_, covered_, block_size_, blocks_;
  const Send send_;
  const absl::Duration patience_;

  mutable absl::Mutex mu_;
  File file_ ABSL_GUARDED_BY(mu_);
  bool local_ ABSL_GUARDED_BY(mu_) = false;  // file_ has everything
  std::vector<uint64_t> there_ ABSL_GUARDED_BY(mu_);
  Waiters waiters_ ABSL_GUARDED_BY(mu_);
  // Blocks that are not there: asked for; said to be bad.
  std::set<uint64_t> wanted_ ABSL_GUARDED_BY(mu_), suspected_ ABSL_GUARDED_BY(mu_);
  std::vector<const Blocks*> reading_ ABSL_GUARDED_BY(mu_);  // of kapsule-fetch's file
  std::vector<Drop> drops_ ABSL_GUARDED_BY(mu_);             // not answered yet
};

}  // namespace kapsule::fuse
