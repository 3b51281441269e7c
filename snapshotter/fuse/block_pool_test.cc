#include "snapshotter/fuse/block_pool.h"

#include <gtest/gtest.h>

namespace kapsule::fuse {
namespace {

using Presence = BlockPool::Presence;
constexpr size_t kSize = BlockPool::kBlockSize;

struct TestWaiter : BlockPool::Waiter {};

class BlockPoolTest : public testing::Test {
 protected:
  BlockPool::Reserved Reserve(uint64_t number) { return pool_->Reserve({1, number}, kSize, now_); }
  void Fill(uint64_t number) {
    const BlockPool::Reserved reserved = Reserve(number);
    ASSERT_TRUE(reserved.pin);
    EXPECT_TRUE(pool_->Complete(reserved.pin, true).empty());
  }
  void ReadToTheEnd(uint64_t number) {
    BlockPool::Pin pin = pool_->Find({1, number});
    ASSERT_TRUE(pin);
    pin.CountRead(kSize);
  }

  const std::unique_ptr<BlockPool> pool_ = *BlockPool::Make(3 * kSize + 100);
  BlockPool::Clock::time_point now_{};
};

TEST_F(BlockPoolTest, ABlockIsFoundOnceItIsLoaded) {
  EXPECT_EQ(pool_->slots(), 3u);
  const BlockPool::Reserved reserved = Reserve(7);
  ASSERT_TRUE(reserved.pin);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(reserved.pin->memory.data()) % kSize, 0u);
  EXPECT_EQ(pool_->Look({1, 7}), Presence::kLoading);
  EXPECT_FALSE(pool_->Find({1, 7}));
  EXPECT_EQ(Reserve(7).found, Presence::kLoading);
  reserved.pin->memory[5] = std::byte{42};
  pool_->Complete(reserved.pin, true);
  EXPECT_EQ(pool_->Look({1, 7}), Presence::kReady);
  EXPECT_EQ(Reserve(7).found, Presence::kReady);
  const BlockPool::Pin pin = pool_->Find({1, 7});
  ASSERT_TRUE(pin);
  EXPECT_EQ(pin->bytes()[5], std::byte{42});
  EXPECT_EQ(pool_->Look({2, 7}), Presence::kAbsent);
}

TEST_F(BlockPoolTest, ABlockThatFailedIsGone) {
  {
    const BlockPool::Reserved reserved = Reserve(7);
    pool_->Complete(reserved.pin, false);
    EXPECT_EQ(pool_->Look({1, 7}), Presence::kAbsent);
  }
  EXPECT_TRUE(Reserve(7).pin);
}

TEST_F(BlockPoolTest, WhatWasReadGoesFirstAndTheRestWhenItIsOld) {
  for (const uint64_t n : {0, 1, 2}) Fill(n);
  EXPECT_FALSE(Reserve(3).pin);
  ReadToTheEnd(1);
  Fill(3);
  EXPECT_EQ(pool_->Look({1, 1}), Presence::kAbsent);
  now_ += std::chrono::seconds(2);
  EXPECT_TRUE(pool_->Find({1, 0}));  // used later than 2
  Fill(4);
  EXPECT_EQ(pool_->Look({1, 2}), Presence::kAbsent);
  EXPECT_EQ(pool_->Look({1, 0}), Presence::kReady);
}

TEST_F(BlockPoolTest, APinnedBlockStays) {
  for (const uint64_t n : {0, 1, 2}) Fill(n);
  now_ += std::chrono::seconds(5);
  const BlockPool::Pin first = pool_->Find({1, 0}), second = pool_->Find({1, 1});
  Fill(3);
  EXPECT_EQ(pool_->Look({1, 2}), Presence::kAbsent);
  const BlockPool::Pin third = pool_->Find({1, 3});
  EXPECT_FALSE(Reserve(4).pin);
}

TEST_F(BlockPoolTest, SlotsThatWereReadAreUsedBeforeUntouchedOnes) {
  for (uint64_t n = 0; n < 10; ++n) {
    Fill(n);
    const std::byte* memory = pool_->Find({1, n})->memory.data();
    ReadToTheEnd(n);
    const BlockPool::Reserved next = Reserve(100 + n);
    EXPECT_EQ(next.pin->memory.data(), memory);
    pool_->Complete(next.pin, false);
  }
}

TEST_F(BlockPoolTest, WaitersComeBackWithTheLastOfTheirBlocks) {
  Fill(0);
  BlockPool::Reserved one = Reserve(1), two = Reserve(2);
  const auto waiter = std::make_shared<TestWaiter>();
  EXPECT_TRUE(pool_->Wait(1, 0, 2, waiter));
  EXPECT_EQ(waiter->pins.size(), 3u);
  EXPECT_TRUE(pool_->Complete(two.pin, false).empty());
  const std::vector<BlockPool::WaiterPtr> woken = pool_->Complete(one.pin, true);
  ASSERT_EQ(woken.size(), 1u);
  EXPECT_EQ(woken[0], waiter);
  const auto late = std::make_shared<TestWaiter>();
  EXPECT_FALSE(pool_->Wait(1, 0, 1, late));
  EXPECT_EQ(late->pins.size(), 2u);
  EXPECT_FALSE(pool_->Wait(1, 2, 5, late));
  EXPECT_EQ(late->pins.size(), 2u);
}

TEST_F(BlockPoolTest, TheBlocksOfAWaitingReadStayUntilItIsDone) {
  Fill(0);
  BlockPool::Reserved one = Reserve(1);
  Fill(2);
  auto waiter = std::make_shared<TestWaiter>();
  EXPECT_TRUE(pool_->Wait(1, 0, 1, waiter));
  EXPECT_EQ(pool_->Complete(one.pin, true).size(), 1u);
  one.pin = {};
  ReadToTheEnd(0);
  now_ += std::chrono::seconds(5);
  Fill(3);  // over 2
  now_ += std::chrono::seconds(5);
  EXPECT_EQ(pool_->Look({1, 0}), Presence::kReady);
  EXPECT_EQ(pool_->Look({1, 1}), Presence::kReady);
  waiter.reset();
  Fill(4);
  EXPECT_EQ(pool_->Look({1, 0}), Presence::kAbsent);
}

TEST_F(BlockPoolTest, ADroppedBlockIsNotFoundAndItsSlotIsFree) {
  for (const uint64_t n : {0, 1, 2}) Fill(n);
  pool_->Drop(pool_->Find({1, 1}));
  EXPECT_FALSE(pool_->Find({1, 1}));
  Fill(3);
  EXPECT_TRUE(pool_->Find({1, 0}));
  EXPECT_TRUE(pool_->Find({1, 2}));
}

TEST(BlockPoolSizeTest, WithoutMemoryThereIsNoSlot) {
  const auto pool = BlockPool::Make(kSize - 1);
  ASSERT_TRUE(pool.ok());
  EXPECT_EQ((*pool)->slots(), 0u);
  EXPECT_FALSE((*pool)->Reserve({1, 1}, kSize, {}).pin);
}

}  // namespace
}  // namespace kapsule::fuse
