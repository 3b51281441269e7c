// Layers that come from a registry, as kapsule-snapshotter opens them. Needs root.
#include <absl/time/clock.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <atomic>
#include <thread>

#include "core/control/control_wire.h"
#include "core/control/fetch_wire.h"
#include "snapshotter/data_plane_test_node.h"

namespace kapsule::snapshotter {
namespace {

using blob::MakeTestFile;
using blob::TestBytes;
using testing::Eventually;
using testing::Reader;
using testing::SendSignal;
using testing::StoredLayer;

// kapsule-fetch with every block in `file` already.
class FullFetcher {
 public:
  explicit FullFetcher(const std::filesystem::path& file)
      : file_(IdOf(file)), pair_(*control::MakeSocketPair()), thread_([this] { Run(); }) {}
  ~FullFetcher() {
    shutdown(pair_.ours.get(), SHUT_RDWR);
    thread_.join();
  }
  const UniqueFd& socket() const { return pair_.theirs; }
  int wants() const { return wants_; }

 private:
  static control::FetchFile IdOf(const std::filesystem::path& file) {
    struct stat st = {};
    EXPECT_EQ(stat(file.c_str(), &st), 0);
    return {st.st_dev, st.st_ino};
  }
  void Run() {
    for (;;) {
      const auto packet = control::ReceiveFetchPacket(pair_.ours.get());
      if (!packet.ok()) return;
      const auto* const want = std::get_if<control::FetchWant>(&packet->body);
      if (want == nullptr) continue;
      ++wants_;
      control::FetchHave have{want->first, {}, file_};
      for (uint32_t i = 0; i < want->count; ++i) have.blocks.set(i);
      static_cast<void>(control::SendFetchPacket(pair_.ours.get(), {packet->blob, have},
                                                 control::FetchSend::kWait));
    }
  }

  const control::FetchFile file_;
  const control::SocketPair pair_;
  std::atomic<int> wants_ = 0;
  std::thread thread_;
};

class RemoteLayerTest : public testing::DataPlaneTest {
 protected:
  void TearDown() override {
    mount_.reset();
    fetcher_.reset();
    DataPlaneTest::TearDown();
  }
  static absl::Time Soon() { return absl::Now() + absl::Seconds(20); }
  // Opens a layer as remote, and mounts it.
  void Begin() {
    StartPlane();
    layer_ = Store({MakeTestFile("weights", TestBytes(4 << 20, 5))}, key_);
    fetcher_ = std::make_unique<FullFetcher>(layer_.path);
    ASSERT_TRUE(plane_->UseFetcher(fetcher_->socket(), Soon()).ok());
    const auto view =
        plane_->Open(layer_.digest, layer_.layer.bytes.size(), true,
                     OpenFile(layer_.path, O_RDONLY).value(), layer_.annotations, Soon(), true);
    ASSERT_TRUE(view.ok()) << view.status();
    auto mount = Mount(*view);
    ASSERT_TRUE(mount.ok()) << mount.status();
    mount_ = *std::move(mount);
  }

  StoredLayer layer_;
  std::unique_ptr<FullFetcher> fetcher_;
  std::unique_ptr<testing::ErofsMount> mount_;
};

TEST_F(RemoteLayerTest, ItIsReadThroughSuccessorsAndAtLastHere) {
  ASSERT_NO_FATAL_FAILURE(Begin());
  EXPECT_GT(fetcher_->wants(), 0) << "for its TOC";
  {
    const Reader reader(mount_->path(), layer_.layer);
    const auto expect_reading = [&] {
      EXPECT_TRUE(reader.WaitForRounds(2)) << "the reader hangs";
      EXPECT_EQ(reader.problem(), "");
    };
    expect_reading();
    for (uint64_t takeovers = 1; takeovers <= 2; ++takeovers) {
      const int before = fetcher_->wants();
      SendSignal(plane_->pid(), SIGKILL);
      ASSERT_TRUE(Eventually([&] { return plane_->status().takeovers == takeovers; }));
      expect_reading();
      EXPECT_GT(fetcher_->wants(), before) << "the successor knew nothing";
    }
    const UniqueFd blob = OpenFile(layer_.path, O_RDONLY).value();
    EXPECT_TRUE(plane_->UseLocal(layer_.digest, blob, Soon()).ok());
    const int before = fetcher_->wants();
    SendSignal(plane_->pid(), SIGKILL);
    ASSERT_TRUE(Eventually([&] { return plane_->status().takeovers == 3; }));
    expect_reading();
    EXPECT_EQ(fetcher_->wants(), before);
  }
}

TEST_F(RemoteLayerTest, WhatComesHereDuringAnUpgradeIsReadHereAfterIt) {
  ASSERT_NO_FATAL_FAILURE(Begin());
  keys_->SetDelay(absl::Seconds(2));  // so long it is made ready
  const int asked = keys_->requests();
  absl::Status upgraded;
  std::thread upgrade([&] { upgraded = plane_->Upgrade(); });
  EXPECT_TRUE(Eventually([&] { return keys_->requests() > asked; }));
  const UniqueFd blob = OpenFile(layer_.path, O_RDONLY).value();
  const absl::Status local = plane_->UseLocal(layer_.digest, blob, Soon());
  upgrade.join();
  keys_->SetDelay(absl::ZeroDuration());
  ASSERT_TRUE(local.ok()) << local;
  ASSERT_TRUE(upgraded.ok()) << upgraded;
  const int before = fetcher_->wants();
  {
    const Reader reader(mount_->path(), layer_.layer);
    EXPECT_TRUE(reader.WaitForRounds(2)) << "the reader hangs";
    EXPECT_EQ(reader.problem(), "");
  }
  EXPECT_EQ(fetcher_->wants(), before);
}

}  // namespace
}  // namespace kapsule::snapshotter
