// A node for tests of the data plane: a folder, a keyprovider in a thread, the
// real kapsule-fuse, real mounts. Needs root.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/blob/test_layer.h"
#include "core/crypt/keys.h"
#include "snapshotter/data_plane.h"

namespace kapsule::snapshotter::testing {

inline constexpr uid_t kTestUid = 12'345;
inline constexpr gid_t kTestGid = 12'346;

// Serves core/keyprovider/wire.h with a set of private keys.
class KeyServer {
 public:
  explicit KeyServer(const std::filesystem::path& socket);
  ~KeyServer();
  void SetKeys(std::vector<crypt::Key> keys);
  // Also for requests that wait already.
  void SetDelay(absl::Duration delay) { delay_ms_ = absl::ToInt64Milliseconds(delay); }
  int requests() const { return requests_; }
  uid_t last_peer() const { return last_peer_; }  // uid of the last client

 private:
  void Run();
  void Answer(UniqueFd connection);

  UniqueFd listener_;
  std::atomic<bool> stopping_ = false;
  std::atomic<int64_t> delay_ms_ = 0;
  std::atomic<int> requests_ = 0;
  std::atomic<uid_t> last_peer_ = 0;
  std::mutex mu_;
  std::vector<crypt::Key> keys_;
  std::thread thread_;
};

// A layer with its blob on disk.
struct StoredLayer {
  blob::TestLayer layer;
  oci::Digest digest;
  std::filesystem::path path;
  oci::Annotations annotations;
  bool encrypted = false;
};

// What the process has before a test; after it, nothing may be left.
struct Census {
  int fds = 0, children = 0;
  int mounts = 0;  // below `folder`
  bool operator==(const Census&) const = default;
};
Census TakeCensus(const std::filesystem::path& folder);
void PrintTo(const Census& census, std::ostream* out);

// Mounts a view as the snapshotter does; detached at the end.
class ErofsMount {
 public:
  static absl::StatusOr<std::unique_ptr<ErofsMount>> Make(const std::filesystem::path& view,
                                                          const std::filesystem::path& target);
  ~ErofsMount();
  const std::filesystem::path& path() const { return target_; }

 private:
  explicit ErofsMount(std::filesystem::path target) : target_(std::move(target)) {}
  const std::filesystem::path target_;
};

// Begins and ends with a census.
class DataPlaneTest : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  DataPlane::Options Options() const;
  void StartPlane() { StartPlane(Options()); }
  void StartPlane(DataPlane::Options options);
  // Drops it, as a kapsule-snapshotter that ends and leaves the rest running.
  void LeavePlane();

  // Encrypted for `recipient`, plain without.
  StoredLayer Store(const std::vector<blob::TestFile>& files, const crypt::Key& recipient,
                    bool with_index = true, uint32_t chunk_size = 64 * 1024);
  StoredLayer StorePlain(const std::vector<blob::TestFile>& files);
  // The annotations of `layer` for another recipient.
  oci::Annotations Rewrap(const blob::TestLayer& layer, const crypt::Key& recipient,
                          bool with_index = true) const;

  absl::StatusOr<std::filesystem::path> Open(const StoredLayer& layer,
                                             absl::Duration timeout = absl::Seconds(20));
  absl::StatusOr<std::filesystem::path> Open(const StoredLayer& layer,
                                             const oci::Annotations& annotations);
  absl::StatusOr<std::unique_ptr<ErofsMount>> Mount(const std::filesystem::path& view);

  std::filesystem::path folder_;
  crypt::Key key_, other_key_;
  std::unique_ptr<KeyServer> keys_;
  std::unique_ptr<DataPlane> plane_;

 private:
  StoredLayer StoreBlob(blob::TestLayer layer);
  Census before_;
  bool left_ = false;
  int next_ = 0;
};

// kill(2), but never of "all processes", which is what a pid of -1 says there.
void SendSignal(pid_t pid, int signal);
bool IsAlive(pid_t pid);  // or not reaped

// Whether `condition` holds within half a minute.
bool Eventually(const std::function<bool()>& condition);

// Compares every file of the layer with what `root` shows, read in pieces of odd
// sizes. Empty where all is equal.
std::string CompareTree(const std::filesystem::path& root, const blob::TestLayer& layer);

// Reads every file of the layer below `root` again and again, from the data plane
// and not from the page cache, and compares.
class Reader {
 public:
  Reader(std::filesystem::path root, const blob::TestLayer& layer);
  ~Reader();
  // Empty while all was equal and without error.
  std::string problem() const;
  // Waits for whole rounds that begin from now on.
  bool WaitForRounds(int rounds) const;

 private:
  void Run();

  const std::filesystem::path root_;
  const blob::TestLayer& layer_;
  std::atomic<bool> stopping_ = false;
  std::atomic<int> rounds_ = 0;
  mutable std::mutex mu_;
  std::string problem_;
  std::thread thread_;
};

// A line of /proc/PID/status, without its name.
std::string StatusLine(pid_t pid, const std::string& name);

// Children of this process that run a program of this name.
std::vector<pid_t> ChildrenNamed(const std::string& name);

// The path of kapsule-fuse, beside the test program.
std::filesystem::path FuseProgram();

}  // namespace kapsule::snapshotter::testing
