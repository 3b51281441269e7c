// What the fetcher does where there is little room.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <algorithm>

#include "snapshotter/fetch/test_fetch.h"

namespace kapsule::fetch {
namespace {

constexpr uint64_t kMiB = 1 << 20;

class FetcherSpaceTest : public FetchTest {
 protected:
  static FetcherOptions Limit(uint64_t bytes) {
    FetcherOptions options = Quiet();
    options.cache_bytes = bytes;
    return options;
  }
  void WantAll(const blob::TestLayer& layer) {
    ASSERT_TRUE(Open(layer).ok());
    ASSERT_TRUE(fuse_->Get(NameOf(layer).digest, {0, BlocksOf(layer)}));
  }
  void Close(const blob::TestLayer& layer) { fetcher_->Close(NameOf(layer).digest); }
  bool Gone(const blob::TestLayer& layer) {
    for (int i = 0; i < 3000 && std::filesystem::exists(FileOf(layer)); ++i)
      absl::SleepFor(absl::Milliseconds(10));
    return !std::filesystem::exists(FileOf(layer));
  }
};

TEST_F(FetcherSpaceTest, ClosedBlobsGoFirstAndOfTheseTheOldest) {
  const auto a = LayerOf(4 * kMiB, 1), b = LayerOf(4 * kMiB, 2), c = LayerOf(8 * kMiB, 3);
  for (const auto* layer : {&a, &b, &c}) Serve(*layer);
  Begin(Limit(18 * kMiB));
  WantAll(a);
  WantAll(b);
  Close(a);
  Close(b);
  WantAll(c);  // the room that is kept free takes one of them
  EXPECT_TRUE(Gone(a));
  EXPECT_TRUE(std::filesystem::exists(FileOf(b)));
  EXPECT_TRUE(std::filesystem::exists(FileOf(c)));
  EXPECT_EQ(fuse_->dropped, 0u);
}

TEST_F(FetcherSpaceTest, ALayerLargerThanTheCacheCanBeReadThrough) {
  const auto layer = LayerOf(40 * kMiB);
  const oci::Digest blob = NameOf(layer).digest;
  const auto source = Serve(layer);
  Begin(Limit(16 * kMiB));
  ASSERT_TRUE(Open(layer).ok());
  for (uint64_t block = 0; block < BlocksOf(layer); ++block)
    ASSERT_TRUE(fuse_->Get(blob, {block, 1}, absl::Seconds(30))) << block;
  EXPECT_GT(fuse_->dropped, 0u);
  EXPECT_LE(fetcher_->counters().cache_bytes, 18 * kMiB);
  EXPECT_GT(fetcher_->counters().evicted_bytes, 10 * kMiB);
  EXPECT_TRUE(fuse_->Get(blob, {0, 1}, absl::Seconds(30)));  // again
  EXPECT_TRUE(fuse_->failed.empty());
}

TEST_F(FetcherSpaceTest, NothingOpenIsForgottenUntilItIsLetGoOf) {
  const auto layer = LayerOf(24 * kMiB);
  const oci::Digest blob = NameOf(layer).digest;
  Serve(layer);
  FetcherOptions options = Limit(8 * kMiB);
  options.read_timeout = absl::Seconds(8);
  Begin(options);
  fuse_->lets_go = false;
  ASSERT_TRUE(Open(layer).ok());
  fuse_->Want(blob, {0, 20});
  ASSERT_TRUE(fuse_->Until([&] { return !fuse_->failed.empty(); }, absl::Seconds(20)));
  EXPECT_NE(Message(fuse_->failed.front().why).find("full"), std::string::npos);
  EXPECT_EQ(fetcher_->counters().evicted_bytes, 0u);
  EXPECT_GE(fuse_->have[blob].size(), 7u);
}

TEST_F(FetcherSpaceTest, AfterAStallANewConnectionMakesRoomAgain) {
  const auto layer = LayerOf(12 * kMiB);
  const oci::Digest blob = NameOf(layer).digest;
  Serve(layer);
  Begin(Limit(8 * kMiB));
  fuse_->lets_go = false;
  ASSERT_TRUE(Open(layer).ok());
  ASSERT_TRUE(fuse_->Get(blob, {0, 8}));
  std::set<uint64_t> stalled;
  ASSERT_TRUE(fuse_->Until(
      [&] {
        for (const auto& [block, times] : fuse_->asked)
          if (times > 1) stalled.insert(block);
        return !stalled.empty();
      },
      absl::Seconds(30)));
  Connect();
  // Once that it goes as it was about to, and once more when it is there again.
  const auto all_went_twice = [&] {
    return std::all_of(stalled.begin(), stalled.end(),
                       [&](uint64_t block) { return fuse_->asked[block] >= 2; });
  };
  for (int round = 0; round < 4 && !all_went_twice(); ++round)
    for (uint64_t block = 0; block < BlocksOf(layer); ++block)
      ASSERT_TRUE(fuse_->Get(blob, {block, 1}, absl::Seconds(30))) << block;
  EXPECT_TRUE(all_went_twice());
  EXPECT_LE(fetcher_->counters().cache_bytes, 9 * kMiB);
  EXPECT_TRUE(fuse_->failed.empty());
}

TEST_F(FetcherSpaceTest, ReadsThatWaitOutlastTheGraceOfWhatWasThere) {
  const auto a = LayerOf(12 * kMiB, 1), b = LayerOf(8 * kMiB, 2);
  for (const auto* layer : {&a, &b}) Serve(*layer);
  Begin(Limit(24 * kMiB));
  WantAll(a);
  End();
  FetcherOptions options = Limit(12 * kMiB);
  options.read_timeout = absl::Seconds(10);
  Begin(options);
  WantAll(b);
  EXPECT_TRUE(Gone(a));
  EXPECT_TRUE(fuse_->failed.empty());
}

TEST_F(FetcherSpaceTest, ADoubtAboutABlockThatGoesAwayIsNotLeftOpen) {
  const auto layer = LayerOf(12 * kMiB);
  const oci::Digest blob = NameOf(layer).digest;
  Serve(layer);
  Begin(Limit(8 * kMiB));
  fuse_->lets_go = false;
  ASSERT_TRUE(Open(layer).ok());
  ASSERT_TRUE(fuse_->Get(blob, {0, 8}));
  ASSERT_TRUE(fuse_->Until([&] { return !fuse_->asked.empty(); }, absl::Seconds(30)));
  const uint64_t going = fuse_->asked.begin()->first;
  fuse_->Send(blob, control::FetchSuspect{going});
  fuse_->Until([] { return false; }, absl::Milliseconds(300));
  fuse_->Want(blob, {going, 1});
  fuse_->have[blob].erase(going);
  fuse_->Send(blob, control::FetchDropped{going, 1, ~uint64_t{0}});
  ASSERT_TRUE(fuse_->Until([&] { return fuse_->HasAll(blob, {going, 1}); }));
  fuse_->Send(blob, control::FetchSuspect{going});  // there again, it is looked at
  EXPECT_TRUE(fuse_->Until([&] { return fuse_->checked == std::vector<uint64_t>{going}; }));
}

TEST_F(FetcherSpaceTest, WhatWasThereAtTheStartStaysForAWhile) {
  const auto a = LayerOf(4 * kMiB, 1), b = LayerOf(4 * kMiB, 2);
  for (const auto* layer : {&a, &b}) Serve(*layer);
  Begin(Limit(18 * kMiB));
  WantAll(a);
  WantAll(b);
  End();
  Begin(Limit(6 * kMiB));
  absl::SleepFor(absl::Milliseconds(300));
  EXPECT_TRUE(std::filesystem::exists(FileOf(a)));
  ASSERT_TRUE(Open(b).ok());
  EXPECT_TRUE(fuse_->Until([&] { return fuse_->HasAll(NameOf(b).digest, {0, BlocksOf(b)}); }));
  End();
  FetcherOptions options = Limit(6 * kMiB);
  options.start_grace = absl::ZeroDuration();
  Begin(options);
  EXPECT_TRUE(Gone(a));
}

TEST_F(FetcherSpaceTest, FillingStopsWhereItWouldMakeSomethingGo) {
  const auto layer = LayerOf(40 * kMiB);
  Serve(layer);
  FetcherOptions options = Limit(32 * kMiB);
  options.fill = Fill::kEager;
  Begin(options);
  ASSERT_TRUE(Open(layer).ok());
  EXPECT_TRUE(fuse_->Until([&] { return fuse_->have[NameOf(layer).digest].size() >= 16; }));
  fuse_->Until([] { return false; }, absl::Seconds(1));
  EXPECT_LE(fetcher_->counters().cache_bytes, 28 * kMiB);
  EXPECT_EQ(fuse_->dropped, 0u);
}

// A cache on a file system of its own, of `bytes`.
class SmallDiskTest : public FetcherSpaceTest {
 protected:
  void Mount(const char* options) {
    std::filesystem::create_directory(path_ / "cache");
    ASSERT_EQ(mount("kapsule-test", (path_ / "cache").c_str(), "tmpfs", 0, options), 0)
        << "run as root: " << strerror(errno);
  }
  void Remount(unsigned long flags, const char* options) {
    ASSERT_EQ(
        mount("kapsule-test", (path_ / "cache").c_str(), "tmpfs", MS_REMOUNT | flags, options), 0)
        << strerror(errno);
  }
  void TearDown() override {
    End();
    umount((path_ / "cache").c_str());
  }
};

TEST_F(SmallDiskTest, AFullDiskFailsReadsAndHealsWhenThereIsSpace) {
  const auto layer = LayerOf(12 * kMiB);
  const oci::Digest blob = NameOf(layer).digest;
  Serve(layer);
  Mount("size=6m");
  Begin();
  ASSERT_TRUE(Open(layer).ok());
  fuse_->Want(blob, {0, 12});
  ASSERT_TRUE(fuse_->Until([&] { return !fuse_->failed.empty(); }));
  EXPECT_EQ(fuse_->failed.front().why.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(Message(fuse_->failed.front().why).find("No space left"), std::string::npos);
  Remount(0, "size=40m");
  EXPECT_TRUE(fuse_->Until([&] {
    fuse_->Want(blob, {0, 12});
    return fuse_->HasAll(blob, {0, 12});
  }));
  std::string bytes(12 * kMiB, '\0');
  const auto file = FileReader::Open(FileOf(layer)).value();
  ASSERT_TRUE(file->ReadAt(0, std::as_writable_bytes(std::span(bytes))).ok());
  EXPECT_EQ(bytes, layer.bytes.substr(0, bytes.size()));
}

TEST_F(SmallDiskTest, AFullDiskTakesClosedBlobsFirst) {
  const auto a = LayerOf(5 * kMiB, 1), b = LayerOf(6 * kMiB, 2);
  Serve(a);
  Serve(b);
  Mount("size=10m");
  Begin();
  WantAll(a);
  Close(a);
  WantAll(b);
  EXPECT_TRUE(Gone(a));
  EXPECT_TRUE(fuse_->failed.empty());
}

TEST_F(SmallDiskTest, AReadOnlyDiskIsToldAndHealsToo) {
  const auto layer = LayerOf(2 * kMiB);
  Serve(layer);
  Mount("size=20m");
  Begin();
  Remount(MS_RDONLY, "");
  const auto file = Open(layer);
  ASSERT_FALSE(file.ok());
  EXPECT_NE(Message(file.status()).find("Read-only"), std::string::npos) << file.status();
  Remount(0, "");
  WantAll(layer);
}

}  // namespace
}  // namespace kapsule::fetch
