#include "core/image/piece_worker.h"

#include <absl/synchronization/notification.h>
#include <absl/time/clock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <vector>

namespace kapsule::image {
namespace {

SharedPiece PieceAt(uint64_t offset) {
  auto piece = std::make_shared<Piece>();
  piece->offset = offset;
  return piece;
}

TEST(PieceWorkerTest, WorksInOrderAndDrainWaitsForAll) {
  std::vector<uint64_t> seen;
  PieceWorker worker([&seen](const Piece& piece) {
    seen.push_back(piece.offset);
    return absl::OkStatus();
  });
  std::vector<uint64_t> expected;
  for (uint64_t i = 0; i < 1000; ++i) {
    expected.push_back(i);
    ASSERT_TRUE(worker.Push(PieceAt(i)).ok());
  }
  ASSERT_TRUE(worker.Drain().ok());
  EXPECT_EQ(seen, expected);
}

TEST(PieceWorkerTest, WorksOnAfterADrain) {
  int seen = 0;
  PieceWorker worker([&seen](const Piece&) { return ++seen, absl::OkStatus(); });
  for (int round = 1; round <= 3; ++round) {
    ASSERT_TRUE(worker.Push(PieceAt(0)).ok());
    ASSERT_TRUE(worker.Drain().ok());
    EXPECT_EQ(seen, round);
  }
}

TEST(PieceWorkerTest, AnErrorEndsTheWorkAndIsReturned) {
  int calls = 0;
  PieceWorker worker([&calls](const Piece& piece) -> absl::Status {
    ++calls;
    if (piece.offset == 2) return DataLoss("piece 2");
    return absl::OkStatus();
  });
  for (uint64_t i = 0; i < 50; ++i) worker.Push(PieceAt(i)).IgnoreError();
  EXPECT_EQ(Describe(worker.Drain()), Describe(DataLoss("piece 2")));
  EXPECT_FALSE(worker.Push(PieceAt(50)).ok());
  worker.Drain().IgnoreError();
  EXPECT_EQ(calls, 3);
}

TEST(PieceWorkerTest, DestroyingItDropsWhatWaits) {
  std::atomic<int> calls = 0;
  absl::Notification begun, gate;
  auto worker = std::make_unique<PieceWorker>([&](const Piece&) {
    if (++calls == 1) begun.Notify();
    gate.WaitForNotification();
    return absl::OkStatus();
  });
  for (uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(worker->Push(PieceAt(i)).ok());
  begun.WaitForNotification();
  std::thread opener([&gate] {
    absl::SleepFor(absl::Milliseconds(100));
    gate.Notify();
  });
  worker.reset();
  opener.join();
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace kapsule::image
