#include "core/image/pipeline.h"

#include <absl/synchronization/notification.h>
#include <absl/time/clock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>

namespace kapsule::image {
namespace {

size_t ThreadCount() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return std::distance(begin(tasks), end(tasks));
}

// The kernel lists a thread for a moment after it was joined.
void ExpectThreads(size_t threads) {
  for (int i = 0; i < 3000 && ThreadCount() > threads; ++i) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_LE(ThreadCount(), threads);
}

// Fills a piece with its number.
absl::Status Send(Pipeline& pipeline, uint64_t number) {
  ASSIGN_OR_RETURN(Piece* const piece, pipeline.Next());
  piece->offset = number;
  piece->size = sizeof(number);
  StoreLe(piece->bytes().data(), number);
  return pipeline.Push();
}

absl::Status Add(Piece& piece, uint64_t by) {
  StoreLe(piece.bytes().data(), LoadLe<uint64_t>(piece.bytes().data()) + by);
  return absl::OkStatus();
}

TEST(PipelineTest, EveryPiecePassesTheStagesInOrder) {
  std::vector<uint64_t> seen;
  const auto pipeline = *Pipeline::Start({[](Piece& piece) { return Add(piece, 1000); },
                                          [](Piece& piece) { return Add(piece, piece.offset); },
                                          [&seen](Piece& piece) {
                                            seen.push_back(LoadLe<uint64_t>(piece.room.data()));
                                            return absl::OkStatus();
                                          }},
                                         3);
  std::vector<uint64_t> expected;
  for (uint64_t i = 0; i < 1000; ++i) {
    ASSERT_TRUE(Send(*pipeline, i).ok());
    expected.push_back(1000 + 2 * i);
  }
  ASSERT_TRUE(pipeline->WaitFor(2).ok());
  EXPECT_EQ(seen, expected);
  EXPECT_EQ(pipeline->bytes_passed(), 8000u);
}

TEST(PipelineTest, OnePieceIsEnoughAndIsAligned) {
  int passed = 0;
  const auto pipeline =
      *Pipeline::Start({[&passed](Piece&) { return ++passed, absl::OkStatus(); }}, 1);
  for (uint64_t i = 0; i < 100; ++i) {
    Piece* const piece = *pipeline->Next();
    EXPECT_EQ(piece->room.size(), kPieceSize);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(piece->room.data()) % kPieceSize, 0u);
    EXPECT_EQ(*pipeline->Next(), piece) << "not pushed yet";
    ASSERT_TRUE(pipeline->Push().ok());
  }
  ASSERT_TRUE(pipeline->WaitFor(0).ok());
  EXPECT_EQ(passed, 100);
}

TEST(PipelineTest, WaitsForOneStageAlone) {
  absl::Notification gate;
  int first = 0;
  const auto pipeline = *Pipeline::Start({[&first](Piece&) { return ++first, absl::OkStatus(); },
                                          [&gate](Piece&) {
                                            gate.WaitForNotification();
                                            return absl::OkStatus();
                                          }},
                                         4);
  for (uint64_t i = 0; i < 3; ++i) ASSERT_TRUE(Send(*pipeline, i).ok());
  ASSERT_TRUE(pipeline->WaitFor(0).ok());
  EXPECT_EQ(first, 3);
  EXPECT_EQ(pipeline->bytes_passed(), 0u);
  gate.Notify();
  ASSERT_TRUE(pipeline->WaitFor(1).ok());
  EXPECT_EQ(pipeline->bytes_passed(), 24u);
}

TEST(PipelineTest, FillsNoMorePiecesThanItHas) {
  absl::Notification gate;
  std::atomic<int> sent = 0;
  const auto pipeline = *Pipeline::Start({[&gate](Piece&) {
                                           gate.WaitForNotification();
                                           return absl::OkStatus();
                                         }},
                                         3);
  std::thread sender([&] {
    for (uint64_t i = 0; i < 10; ++i, ++sent) EXPECT_TRUE(Send(*pipeline, i).ok());
  });
  for (int i = 0; i < 3000 && sent < 3; ++i) absl::SleepFor(absl::Milliseconds(10));
  absl::SleepFor(absl::Milliseconds(100));  // for one more
  EXPECT_EQ(sent, 3);
  gate.Notify();
  sender.join();
  EXPECT_TRUE(pipeline->WaitFor(0).ok());
}

class PipelineErrors : public testing::TestWithParam<size_t> {};

// While the sender waits for room, while it fills, and while it waits for a stage.
TEST_P(PipelineErrors, AnErrorInAnyStageEndsAllAndIsReturned) {
  const size_t failing = GetParam(), threads = ThreadCount();
  std::atomic<int> calls[3] = {};
  const auto stage = [&](size_t number) {
    return [&, number](Piece& piece) -> absl::Status {
      ++calls[number];
      if (number == failing && piece.offset == 5) return DataLoss("piece 5");
      return absl::OkStatus();
    };
  };
  auto pipeline = *Pipeline::Start({stage(0), stage(1), stage(2)}, 4);
  absl::Status status;
  for (uint64_t i = 0; i < 100 && status.ok(); ++i) status = Send(*pipeline, i);
  EXPECT_EQ(Describe(status), Describe(DataLoss("piece 5")));
  EXPECT_EQ(Describe(pipeline->Next().status()), Describe(status));
  for (const size_t waited : {0, 1, 2})
    EXPECT_EQ(Describe(pipeline->WaitFor(waited)), Describe(status));
  EXPECT_EQ(calls[failing], 6);
  pipeline.reset();
  for (size_t after = failing + 1; after < 3; ++after) EXPECT_LE(calls[after], 5);
  ExpectThreads(threads);
}

INSTANTIATE_TEST_SUITE_P(Stages, PipelineErrors, testing::Values(0, 1, 2));

TEST(PipelineTest, DestroyingItDropsWhatIsOnItsWay) {
  const size_t threads = ThreadCount();
  std::atomic<int> calls = 0, later = 0;
  absl::Notification begun, gate;
  auto pipeline = *Pipeline::Start({[&](Piece&) {
                                      if (++calls == 1) begun.Notify();
                                      gate.WaitForNotification();
                                      return absl::OkStatus();
                                    },
                                    [&later](Piece&) { return ++later, absl::OkStatus(); }},
                                   4);
  for (uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(Send(*pipeline, i).ok());
  begun.WaitForNotification();
  std::thread opener([&gate] {
    absl::SleepFor(absl::Seconds(2));  // so that the end has begun, which nothing shows
    gate.Notify();
  });
  pipeline.reset();
  opener.join();
  EXPECT_EQ(calls, 1);
  EXPECT_LE(later, 1);
  ExpectThreads(threads);
}

}  // namespace
}  // namespace kapsule::image
