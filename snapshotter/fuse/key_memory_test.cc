// Root, who can read all memory of a process, does not find its keys. With a
// process of the test's own that does what kapsule-fuse does to a key.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <functional>
#include <thread>
#include <utility>

#include "core/base/secret_arena.h"
#include "core/base/unix_socket.h"
#include "core/crypt/key_scan.h"
#include "core/keyprovider/wire.h"
#include "snapshotter/fuse/bind_symbols.h"
#include "snapshotter/fuse/confine.h"
#include "snapshotter/fuse/seccomp.h"

namespace kapsule::fuse {
namespace {

namespace fs = std::filesystem;
using crypt::testing::KeyScan;

constexpr uint32_t kChunk = 64 * 1024;
constexpr uint64_t kCovered = 1 << 20;

// Encrypts and authenticates a few chunks, again and again.
class Traffic {
 public:
  Traffic(const crypt::LayerKey& key, ByteSpan salt)
      : cipher_(crypt::LayerCipher::Create(key).value()),
        mac_(crypt::ChunkMac::Create(key, salt, kChunk, kCovered).value()),
        chunk_(kChunk) {}
  void Run() {
    for (uint64_t i = 0; i < 16; ++i) {
      if (!mac_.Tag(i, chunk_).ok() || !cipher_.Apply(i * kChunk, chunk_, chunk_).ok() ||
          !cipher_.Apply(i * kChunk + 5, chunk_, chunk_).ok())
        _exit(3);
    }
  }

 private:
  crypt::LayerCipher cipher_;
  crypt::ChunkMac mac_;
  Bytes chunk_;
};

class KeyMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(geteuid(), 0u) << "this test needs root";
    std::string name = "/tmp/kapsule-memory-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    ASSERT_EQ(chmod(name.c_str(), 0711), 0);
    ASSERT_TRUE(MakeDirs(folder_ / "keys", 0755).ok());
    ASSERT_EQ(pipe2(ready_, O_CLOEXEC), 0);
  }
  void TearDown() override {
    if (child_ > 0) {
      kill(child_, SIGKILL);
      waitpid(child_, nullptr, 0);
    }
    close(ready_[0]);
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }

  // Starts a process that calls Ready() when it is worth looking at.
  void Start(const std::function<void()>& body) {
    child_ = fork();
    ASSERT_GE(child_, 0);
    if (child_ == 0) {
      body();
      _exit(2);
    }
    close(std::exchange(ready_[1], -1));
  }
  void Ready() {
    if (write(ready_[1], "r", 1) != 1) _exit(2);
  }
  void WaitUntilReady() {
    char byte;
    ASSERT_EQ(read(ready_[0], &byte, 1), 1);
  }
  KeyScan ScanOf(const crypt::LayerKey& key, const Secret& salt) const {
    KeyScan scan;
    scan.AddLayer(key, salt.bytes(), kChunk, kCovered);
    scan.Add("marker", AsBytes(getenv("KAPSULE_MARKER")));
    return scan;
  }

  fs::path folder_;
  int ready_[2];
  pid_t child_ = -1;
};

// As kapsule-fuse begins; glibc gives constructors what main() gets.
__attribute__((constructor)) void BindSymbols(int, char** argv, char**) {
  if (!BindSymbolsNow(argv).ok()) _exit(2);
}

// Static: in the data segment of every process that is forked.
std::string* const marker = [] {
  static std::string text = fmt::format("kapsule-marker-{}", getpid());
  setenv("KAPSULE_MARKER", text.c_str(), 1);
  return &text;
}();

// The first test: OpenSSL must not have been used here before the fork.
TEST_F(KeyMemoryTest, InTheArenaItFindsNone) {
  const UniqueFd listener =
      ListenUnix(folder_ / "keys" / "keys.sock", SOCK_SEQPACKET, 0666).value();
  const UniqueFd annotations = SealedMemfd("annotations", AsBytes("{}")).value();
  Secret salt(32);
  std::memset(salt.bytes().data(), 0x5a, salt.size());
  Start([&] {
    const fs::path socket = folder_ / "keys" / "keys.sock";
    Bytes salt_here(32, std::byte{0x5a});
    for (const absl::Status& status :
         {InstallSecretArena(), Confine({12'345, 12'346, socket}), AllowOnlyNeededCalls()}) {
      EXPECT_TRUE(status.ok()) << status;
      if (!status.ok()) _exit(2);
    }
    const auto layer = keyprovider::Unwrap(socket, annotations.get(), 10'000);
    EXPECT_TRUE(layer.ok()) << layer.status();
    if (!layer.ok()) _exit(2);
    std::thread other([&] {  // a stack and registers of its own
      for (Traffic traffic(layer->key, salt_here);;) traffic.Run();
    });
    Traffic traffic(layer->key, salt_here);
    Ready();
    for (;;) {
      traffic.Run();
      (void)crypt::CommitmentTo(layer->key, salt_here).value();
      Traffic(layer->key, salt_here).Run();
    }
  });
  // Made after the fork, so that the process gets it by its socket alone.
  crypt::LayerKey key = crypt::LayerKey::Generate().value();
  {
    const UniqueFd connection(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_TRUE(keyprovider::ReceiveRequest(connection.get()).ok());
    ASSERT_TRUE(keyprovider::SendReply(connection.get(),
                                       keyprovider::UnwrappedLayer{key.Clone(), std::nullopt})
                    .ok());
  }
  WaitUntilReady();
  const KeyScan scan = ScanOf(key, salt);
  for (int round = 0; round < 20; ++round) {
    const KeyScan::Found found = scan.Run(child_);
    EXPECT_EQ(found.names, std::set<std::string>{"marker"})
        << fmt::format("{}", fmt::join(found.places, ", "));
    EXPECT_GT(found.readable, 1u << 20);
    EXPECT_EQ(found.hidden, kSecretArenaBytes);
    usleep(7000);
  }
  EXPECT_EQ(waitpid(child_, nullptr, WNOHANG), 0);  // it still runs
}

// The scan sees what is there: OpenSSL's contexts on an ordinary heap.
TEST_F(KeyMemoryTest, WithoutTheArenaTheScanFindsEveryKey) {
  const crypt::LayerKey key = crypt::LayerKey::Generate().value();
  Secret salt(32);
  ASSERT_TRUE(FillRandom(salt.bytes()).ok());
  // Secrets are zero in the child.
  const Bytes key_copy(key.key.bytes().begin(), key.key.bytes().end());
  const Bytes nonce_copy(key.nonce.bytes().begin(), key.nonce.bytes().end());
  const Bytes salt_copy(salt.bytes().begin(), salt.bytes().end());
  Start([&] {
    const crypt::LayerKey here{Secret::CopyOf(key_copy), Secret::CopyOf(nonce_copy)};
    Traffic traffic(here, salt_copy);
    traffic.Run();
    Ready();
    for (;;) traffic.Run();
  });
  WaitUntilReady();
  const KeyScan::Found found = ScanOf(key, salt).Run(child_);
  for (const char* name :
       {"layer key", "layer key schedule", "MAC key", "MAC key schedule", "GHASH key", "marker"})
    EXPECT_TRUE(found.names.contains(name)) << name;
  EXPECT_EQ(found.hidden, 0u);
}

}  // namespace
}  // namespace kapsule::fuse
