#include "snapshotter/fuse/stream_detector.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace kapsule::fuse {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kBlock = 2 * kMiB;
constexpr uint64_t kEnd = uint64_t{1} << 40;

class StreamDetectorTest : public testing::Test {
 protected:
  // Notes a request and follows the plan; the number of blocks that it asks for.
  uint64_t Note(uint64_t begin, uint64_t size, uint64_t layer = 1, uint64_t limit = kEnd) {
    last_ = detector_.Note(layer, begin, begin + size, limit, now_);
    if (last_.end != last_.first) detector_.Followed(last_, last_.end);
    return last_.end - last_.first;
  }

  StreamDetector detector_{kBlock, 16};
  StreamDetector::Clock::time_point now_{};
  StreamDetector::Plan last_;
};

TEST_F(StreamDetectorTest, AStreamIsReadAheadOfItselfOnceAndWithoutAGap) {
  uint64_t next = 2;
  for (uint64_t n = 0; n < 200; ++n) {
    const uint64_t asked = Note(n * kMiB, kMiB);
    if (asked == 0) continue;
    EXPECT_GE(n, 2u);  // the kernel reads that much around one fault
    EXPECT_EQ(last_.first, next);
    next = last_.end;
    EXPECT_GE(next * kBlock, (n + 2) * kMiB) << n;
  }
  EXPECT_GE(next * kBlock, 200 * kMiB + 4 * kBlock);
  EXPECT_LE(next * kBlock, 200 * kMiB + (StreamDetector::kMaxAhead + 1) * kBlock);
}

TEST_F(StreamDetectorTest, RequestsOnTheirWayTogetherMayArriveInAnyOrder) {
  std::mt19937 random(7);
  std::vector<uint64_t> order(8);
  uint64_t reached = 0;
  for (uint64_t n = 0; n < 160; n += order.size()) {
    for (uint64_t i = 0; i < order.size(); ++i) order[i] = n + i;
    std::shuffle(order.begin(), order.end(), random);
    for (const uint64_t request : order)
      if (Note(request * kMiB, kMiB) != 0) reached = last_.end;
  }
  EXPECT_GE(reached * kBlock, 160 * kMiB + 4 * kBlock);
}

TEST_F(StreamDetectorTest, RandomRequestsAreNotReadAhead) {
  std::mt19937_64 random(1);
  uint64_t asked = 0;
  for (int i = 0; i < 20'000; ++i) asked += Note(random() % 16'000 * kMiB, kMiB);
  EXPECT_EQ(asked, 0u);
}

// With the kernel's window of 2 MiB a random page fault is two requests.
TEST_F(StreamDetectorTest, RandomPageFaultsAreHardlyEverReadAhead) {
  std::mt19937_64 random(1);
  uint64_t asked = 0;
  for (int i = 0; i < 20'000; ++i) {
    const uint64_t at = random() % 65'536 * kMiB + 4096;
    asked += Note(at, kMiB) + Note(at + kMiB, kMiB);
  }
  EXPECT_LT(asked, 40u);  // two that follow each other by chance
}

TEST_F(StreamDetectorTest, SmallRequestsOfOneFaultAreNoStreamAndLongOnesAre) {
  uint64_t asked = 0;
  for (uint64_t at = 0; at < 2 * kMiB; at += 128 << 10) asked += Note(at, 128 << 10);
  EXPECT_EQ(asked, 0u);
  for (uint64_t at = 2 * kMiB; at < 4 * kMiB; at += 128 << 10) asked += Note(at, 128 << 10);
  EXPECT_GT(asked, 0u);
}

TEST_F(StreamDetectorTest, ManyStreamsShareTheSlots) {
  for (const uint64_t streams : {1, 2, 4, 8, 32}) {
    StreamDetector detector(kBlock, 16);
    uint64_t ahead = 0;
    for (uint64_t n = 0; n < 40; ++n) {
      ahead = 0;
      for (uint64_t s = 0; s < streams; ++s) {
        const uint64_t begin = (s * 1000 + n) * kMiB;
        const auto plan = detector.Note(1 + s % 3, begin, begin + kMiB, kEnd, now_);
        if (plan.end != plan.first) detector.Followed(plan, plan.end);
        ahead += plan.end - std::min(plan.end, (begin + kMiB) / kBlock + 1);
      }
    }
    EXPECT_GE(ahead, std::min<uint64_t>(streams * 4, 8)) << streams;
    EXPECT_LE(ahead, std::max<uint64_t>(16, streams)) << streams;
  }
}

TEST_F(StreamDetectorTest, AStreamThatStoppedTakesNoShare) {
  for (uint64_t s = 0; s < 8; ++s)
    for (uint64_t n = 0; n < 10; ++n) Note((s * 1000 + n) * kMiB, kMiB);
  now_ += std::chrono::seconds(2);
  uint64_t reached = 0;
  for (uint64_t n = 9000; n < 9020; ++n)
    if (Note(n * kMiB, kMiB) != 0) reached = last_.end;
  EXPECT_GE(reached * kBlock, 9020 * kMiB + 4 * kBlock);
}

TEST_F(StreamDetectorTest, TheSameFileReadAgainIsAStreamAgain) {
  for (int pass = 0; pass < 3; ++pass) {
    uint64_t asked = 0;
    for (uint64_t n = 0; n < 100; ++n) asked += Note(n * kMiB, kMiB, 1, 100 * kMiB);
    EXPECT_GE(asked, 47u) << pass;
  }
}

TEST_F(StreamDetectorTest, NothingIsReadAheadBeyondTheLimitOrForAnotherLayer) {
  for (uint64_t n = 0; n < 9; ++n) {
    Note(n * kMiB, kMiB, 1, 9 * kMiB + 1);
    EXPECT_LE(last_.end, 5u);
    EXPECT_EQ(Note((n + 500) * kMiB, kMiB, 2 + n), 0u);
  }
}

TEST_F(StreamDetectorTest, WhatWasNotFollowedIsAskedForAgain) {
  for (uint64_t n = 0; n < 8; ++n) detector_.Note(1, n * kMiB, (n + 1) * kMiB, kEnd, now_);
  const auto plan = detector_.Note(1, 8 * kMiB, 9 * kMiB, kEnd, now_);
  EXPECT_EQ(plan.first, 5u);
  detector_.Followed(plan, 6);
  EXPECT_EQ(detector_.Note(1, 9 * kMiB, 10 * kMiB, kEnd, now_).first, 6u);
  // What the reader has passed meanwhile is not.
  for (uint64_t n = 10; n < 20; ++n) detector_.Note(1, n * kMiB, (n + 1) * kMiB, kEnd, now_);
  EXPECT_EQ(detector_.Note(1, 20 * kMiB, 21 * kMiB, kEnd, now_).first, 11u);
}

}  // namespace
}  // namespace kapsule::fuse
