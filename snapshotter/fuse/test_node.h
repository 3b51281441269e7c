// What kapsule-fuse needs around it: a holder and a keyprovider in threads, a
// FUSE mount, and the real program. Needs root.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "core/blob/test_layer.h"
#include "core/control/control_wire.h"
#include "core/control/holder_server.h"
#include "core/control/holder_wire.h"
#include "core/oci/digest.h"

namespace kapsule::fuse::testing {

inline constexpr uid_t kTestUid = 12'345;
inline constexpr gid_t kTestGid = 12'346;

// Serves core/control/holder_wire.h at `socket`.
class TestHolder {
 public:
  explicit TestHolder(const std::filesystem::path& socket);
  ~TestHolder() { Stop(); }
  void Stop();  // as if it were killed
  UniqueFd Connect() const;

 private:
  const std::filesystem::path path_;
  UniqueFd stop_;
  std::unique_ptr<control::HolderStore> store_;
  std::unique_ptr<control::HolderServer> server_;
  std::thread thread_;
};

// Gives the key of one layer to everybody, or says `refusal`.
class TestKeys {
 public:
  TestKeys(const std::filesystem::path& socket, const blob::TestLayer& layer);
  ~TestKeys();
  void Refuse(absl::Status refusal);  // before anybody asks
  int requests() const { return requests_; }

 private:
  const blob::TestLayer& layer_;
  absl::Mutex mu_;
  absl::Status refusal_ ABSL_GUARDED_BY(mu_);
  UniqueFd listener_;
  std::atomic<bool> stopping_ = false;
  std::atomic<int> requests_ = 0;
  std::thread thread_;
};

// kapsule-fuse, started by the command `wrapper` where that is not empty; killed
// at the end.
class TestProcess {
 public:
  TestProcess(const std::filesystem::path& keyprovider, UniqueFd holder,
              const std::vector<std::string>& flags = {}, std::vector<std::string> wrapper = {});
  ~TestProcess();
  void Kill();           // SIGKILL, and waits
  int WaitForEnd();      // its exit status; -1 after a signal
  bool running() const;  // neither ended nor killed
  void CloseControl() { control_.reset(); }
  int control() const { return control_.get(); }
  std::string Log() const;  // its stderr so far

  absl::StatusOr<v1::DataPlaneReply> Call(v1::DataPlaneRequest request,
                                          const std::vector<int>& fds = {});
  absl::Status Serve();

 private:
  UniqueFd control_, log_;
  pid_t pid_ = -1;
  uint64_t last_id_ = 0;
};

// A folder with all that, one encrypted and one plain layer.
class TestNode {
 public:
  TestNode();
  ~TestNode();

  // Ends the connection: whoever waits for an answer gets an error.
  void Abort() const;
  std::unique_ptr<TestProcess> Start(const std::vector<std::string>& flags = {},
                                     std::vector<std::string> wrapper = {});
  void StartKeys();
  void StopKeys() { keys_.reset(); }
  TestKeys& keys() { return *keys_; }
  TestHolder& holder() { return *holder_; }
  // What is held, seen by another client.
  std::vector<std::string> HeldNames() const;
  control::Holder HolderClient() const { return control::Holder(holder_->Connect()); }

  absl::Status Open(TestProcess& process, bool encrypted);
  // `blob` is kapsule-fetch's file of it.
  absl::Status OpenRemote(TestProcess& process, bool encrypted, const UniqueFd& blob,
                          uint32_t timeout_ms = kOpenTimeoutMs);
  absl::Status Close(TestProcess& process, bool encrypted);
  static oci::Digest DigestOf(bool encrypted);
  std::filesystem::path ViewPath(bool encrypted) const {
    return folder_ / "views" / DigestOf(encrypted).hex();
  }
  // What a view must show.
  std::string Expected(bool encrypted) const;
  const std::filesystem::path& folder() const { return folder_; }
  const blob::TestLayer& LayerOf(bool encrypted) const { return encrypted ? encrypted_ : plain_; }
  std::filesystem::path BlobPath(bool encrypted) const {
    return folder_ / (encrypted ? "encrypted" : "plain");
  }

 private:
  static constexpr uint32_t kOpenTimeoutMs = 10'000;
  absl::Status Open(TestProcess& process, bool encrypted, const UniqueFd& blob, bool remote,
                    uint32_t timeout_ms);

  std::filesystem::path folder_;
  blob::TestLayer encrypted_, plain_;
  std::unique_ptr<TestHolder> holder_;
  std::unique_ptr<TestKeys> keys_;
};

// A view, past the page cache: every read is a request.
UniqueFd OpenView(const TestNode& node, bool encrypted);
// All of a file by reads of `piece` bytes; shorter after an error.
std::string ReadAll(const UniqueFd& fd, size_t piece = 1 << 20);

// A thread that reads from the node's mount; where nobody joins it, a test has
// failed and the connection is ended first.
class Reader {
 public:
  Reader(const TestNode& node, std::function<void()> read)
      : node_(node), thread_(std::move(read)) {}
  ~Reader() {
    if (!thread_.joinable()) return;
    node_.Abort();
    thread_.join();
  }
  void Join() { thread_.join(); }

 private:
  const TestNode& node_;
  std::thread thread_;
};

}  // namespace kapsule::fuse::testing
