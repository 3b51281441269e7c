#include "snapshotter/fuse/io_queue.h"

#include <absl/time/clock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <thread>
#include <vector>

namespace kapsule::fuse {
namespace {

BlockLoad LoadOf(uint64_t number) { return {nullptr, number, {}}; }

// The number of the load that comes next, 1000 for a read from memory, 2000 for a
// direct one.
class IoQueueTest : public testing::Test {
 protected:
  uint64_t Next() {
    const std::optional<IoQueue::Work> work = queue_.Next();
    if (!work) return ~uint64_t{0};
    return work->load ? work->load->number : work->read == ready_ ? 1000 : 2000;
  }

  IoQueue queue_{2};
  const DeferredPtr ready_ = std::make_shared<DeferredRead>();
  const DeferredPtr direct_ = std::make_shared<DeferredRead>();
};

TEST_F(IoQueueTest, LoadsComeFirstButOnlyAFewAtOnce) {
  queue_.AddReady(ready_);
  for (uint64_t n = 1; n <= 3; ++n) queue_.AddLoad(LoadOf(n));
  EXPECT_EQ(Next(), 1u);
  EXPECT_EQ(Next(), 2u);
  EXPECT_EQ(Next(), 1000u);
  queue_.LoadDone();
  EXPECT_EQ(Next(), 3u);
}

TEST_F(IoQueueTest, DirectReadsAreNotStarved) {
  queue_.AddDirect(direct_);
  int before = 0;
  for (; before < 100; ++before) {
    queue_.AddReady(ready_);
    if (Next() == 2000) break;
  }
  EXPECT_LT(before, 10);
  EXPECT_GT(before, 1);
}

TEST_F(IoQueueTest, WakesWhoWaits) {
  std::atomic<uint64_t> got{0};
  std::thread waits([&] { got = Next(); });
  queue_.AddLoad(LoadOf(5));
  waits.join();
  EXPECT_EQ(got, 5u);
}

TEST_F(IoQueueTest, OneThreadDoesWhatOneThreadCanDo) {
  constexpr int kThreads = 4, kRounds = 20;
  int most = 0;
  // With more time each time: the machine may be slow.
  for (int attempt = 1; attempt <= 20 && most < kRounds - 2; ++attempt) {
    IoQueue queue(2);
    std::atomic<int> done = 0;
    std::array<std::atomic<int>, kThreads> by{};
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i)
      threads.emplace_back([&, i] {
        while (queue.Next()) {
          ++by[i];
          ++done;
        }
      });
    absl::SleepFor(absl::Milliseconds(100));  // all of them wait
    for (int round = 0; round < kRounds; ++round) {
      queue.AddReady(ready_);
      while (done != round + 1) absl::SleepFor(absl::Milliseconds(1));
      absl::SleepFor(attempt * absl::Milliseconds(5));  // it waits again
    }
    queue.Stop();
    for (std::thread& thread : threads) thread.join();
    most = *std::max_element(by.begin(), by.end());
  }
  EXPECT_GE(most, kRounds - 2);
}

TEST_F(IoQueueTest, StopGivesBackTheLoadsAndEndsTheThreads) {
  std::thread waits([&] { EXPECT_EQ(Next(), ~uint64_t{0}); });
  queue_.Stop();
  waits.join();
  queue_.AddLoad(LoadOf(5));
  EXPECT_EQ(Next(), ~uint64_t{0});
  const std::deque<BlockLoad> left = queue_.Stop();
  ASSERT_EQ(left.size(), 1u);
  EXPECT_EQ(left[0].number, 5u);
}

}  // namespace
}  // namespace kapsule::fuse
