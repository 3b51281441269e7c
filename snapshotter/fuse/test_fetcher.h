// kapsule-fetch for tests: the files of TestNode's two layers, which fill as blocks
// are wanted.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "core/control/fetch_wire.h"
#include "snapshotter/fuse/test_node.h"

namespace kapsule::fuse::testing {

// Thread-safe.
class TestFetcher {
 public:
  // How it treats what is asked of a layer.
  struct Manner {
    bool silent = false;        // answers nothing
    bool lies = false;          // says that bad blocks are good
    absl::Status failure = {};  // not OK: wanted blocks fail
  };

  explicit TestFetcher(const TestNode& node);
  ~TestFetcher();

  // The files have what Open() of kapsule-fetch sees to: index and TOC.
  UniqueFd OpenFileOf(bool encrypted) const;
  // A new connection; the end for kapsule-fuse. The earlier one is closed.
  UniqueFd Connect();

  // Wants that were not answered are, where that is possible now.
  void Behave(bool encrypted, const Manner& manner) ABSL_LOCKS_EXCLUDED(mu_);
  // As if the cache had been lost, or with `keep` moved: a new file with index and TOC.
  void BeginAnew(bool encrypted, bool keep = false) ABSL_LOCKS_EXCLUDED(mu_);
  // Turns bytes of a block that is there around.
  void Damage(bool encrypted, uint64_t block) const;
  // Asks to drop all blocks, and when it may has holes in their place.
  void Drop(bool encrypted) ABSL_LOCKS_EXCLUDED(mu_);

  // Until so many blocks of the layer wait for an answer; false after a while.
  bool AwaitWants(bool encrypted, size_t blocks) ABSL_LOCKS_EXCLUDED(mu_);
  // The same for blocks that were dropped.
  bool AwaitDropped(bool encrypted) ABSL_LOCKS_EXCLUDED(mu_);
  size_t suspected(bool encrypted) const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Layer {
    const blob::TestLayer* made = nullptr;
    oci::Digest digest;
    UniqueFd file;
    uint64_t blocks = 0;
    Manner manner;
    std::set<uint64_t> there, wanted;
    std::set<uint64_t> dropping;  // nothing else was said of them since
    uint64_t question = 0;        // the last about them
    size_t suspected = 0;
  };
  void Receive(int socket);
  void Answer(const control::FetchPacket& packet) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void MakeFile(bool encrypted) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static control::FetchFile FileOf(const Layer& layer);
  void Serve(Layer& layer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Fill(Layer& layer, uint64_t block) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Punch(Layer& layer, uint64_t block) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  template <typename Body>
  void Say(const Layer& layer, Body body) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  template <typename Condition>
  bool Await(const Condition& condition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Disconnect();

  const std::filesystem::path folder_;
  mutable absl::Mutex mu_;
  absl::CondVar changed_;
  Layer layers_[2] ABSL_GUARDED_BY(mu_);
  UniqueFd socket_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace kapsule::fuse::testing
