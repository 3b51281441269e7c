#include "core/base/secret_heap.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <random>
#include <thread>

namespace kapsule {
namespace {

constexpr size_t kPages = 64;

class SecretHeapTest : public ::testing::Test {
 protected:
  SecretHeapTest() : heap_(MutableByteSpan(memory_, sizeof(memory_))) {}

  static bool IsZero(const void* piece, size_t size) {
    const auto* const bytes = static_cast<const std::byte*>(piece);
    return std::all_of(bytes, bytes + size, [](std::byte b) { return b == std::byte{0}; });
  }
  bool WholeRegionIsZero() const { return IsZero(memory_, sizeof(memory_)); }

  alignas(SecretHeap::kPage) std::byte memory_[kPages * SecretHeap::kPage] = {};
  SecretHeap heap_;
};

TEST_F(SecretHeapTest, PiecesAreZeroAlignedAndInside) {
  for (size_t size = 1; size < 3 * SecretHeap::kPage; size = size * 5 / 4 + 1) {
    auto* const piece = static_cast<std::byte*>(heap_.Allocate(size));
    ASSERT_NE(piece, nullptr) << size;
    EXPECT_GE(piece, memory_);
    EXPECT_LE(piece + size, memory_ + sizeof(memory_));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(piece) % (size > 224 ? 64 : 16), 0u) << size;
    EXPECT_TRUE(IsZero(piece, size));
  }
  EXPECT_EQ(heap_.Allocate(0), nullptr);
  heap_.Free(nullptr);
}

// Every piece keeps its own pattern while thousands of others come and go.
TEST_F(SecretHeapTest, NothingOverlapsAndAllIsOverwritten) {
  struct Owned {
    size_t size;
    std::byte pattern;
  };
  std::mt19937 random(4);
  std::map<std::byte*, Owned> pieces;
  const auto check = [](std::byte* piece, size_t size, std::byte pattern) {
    ASSERT_TRUE(std::all_of(piece, piece + size, [&](std::byte b) { return b == pattern; }));
  };
  const auto size = [&] { return size_t{1} + random() % (random() % 20 == 0 ? 20'000 : 900); };
  const auto any = [&] {
    return std::next(pieces.begin(), static_cast<long>(random() % pieces.size()));
  };
  const auto take = [&](std::byte* piece, size_t n) {
    pieces[piece] = {n, static_cast<std::byte>(1 + random() % 255)};
    std::fill_n(piece, n, pieces[piece].pattern);
  };
  int refused = 0;
  for (int round = 0; round < 60'000; ++round) {
    const unsigned what = random() % 8;
    if (what < 4 || pieces.empty()) {
      const size_t n = size();
      auto* const piece = static_cast<std::byte*>(heap_.Allocate(n));
      if (piece == nullptr) {
        ++refused;
        continue;
      }
      ASSERT_TRUE(IsZero(piece, n));
      take(piece, n);
    } else if (what < 7) {
      const auto it = any();
      check(it->first, it->second.size, it->second.pattern);
      heap_.Free(it->first);
      pieces.erase(it);
    } else {
      const auto it = any();
      const Owned old = it->second;
      const size_t n = size();
      auto* const piece = static_cast<std::byte*>(heap_.Resize(it->first, n));
      check(piece == nullptr ? it->first : piece, std::min(old.size, n), old.pattern);
      if (piece == nullptr) continue;
      pieces.erase(it);
      take(piece, n);
    }
  }
  EXPECT_GT(refused, 0);  // it has been full
  for (const auto& [piece, owned] : pieces) {
    check(piece, owned.size, owned.pattern);
    heap_.Free(piece);
  }
  EXPECT_EQ(heap_.used(), 0u);
  EXPECT_TRUE(WholeRegionIsZero());
}

TEST_F(SecretHeapTest, AllOfItCanBeUsedAgainInAnotherSize) {
  for (const size_t size : {16, 32, 700, 4096, 1344, 20'000, 64}) {
    std::vector<void*> pieces;
    while (void* const piece = heap_.Allocate(size)) {
      std::memset(piece, 0xee, size);
      pieces.push_back(piece);
    }
    EXPECT_GT(pieces.size() * size, sizeof(memory_) * 3 / 4) << size;
    EXPECT_LE(heap_.used(), sizeof(memory_));
    std::shuffle(pieces.begin(), pieces.end(), std::mt19937(size));
    for (void* const piece : pieces) heap_.Free(piece);
    EXPECT_EQ(heap_.used(), 0u);
    EXPECT_TRUE(WholeRegionIsZero()) << size;
  }
  EXPECT_NE(heap_.Allocate(sizeof(memory_)), nullptr);  // in one piece
}

TEST_F(SecretHeapTest, ResizeIsReallocs) {
  void* const small = heap_.Resize(nullptr, 20);
  ASSERT_NE(small, nullptr);
  std::memset(small, 7, 20);
  EXPECT_EQ(heap_.Resize(small, 32), small);  // has the room
  auto* const large = static_cast<std::byte*>(heap_.Resize(small, 5000));
  ASSERT_NE(large, small);
  EXPECT_EQ(large[19], std::byte{7});
  EXPECT_TRUE(IsZero(small, 32));
  EXPECT_EQ(heap_.Resize(large, sizeof(memory_) * 2), nullptr);
  EXPECT_EQ(large[19], std::byte{7});
  EXPECT_EQ(heap_.Resize(large, 0), nullptr);
  EXPECT_TRUE(WholeRegionIsZero());
}

TEST_F(SecretHeapTest, AFullHeapRefusesAndGoesOn) {
  EXPECT_EQ(heap_.Allocate(sizeof(memory_) + 1), nullptr);
  EXPECT_EQ(heap_.Allocate(SIZE_MAX), nullptr);
  void* const all = heap_.Allocate(sizeof(memory_));
  ASSERT_NE(all, nullptr);
  EXPECT_EQ(heap_.Allocate(1), nullptr);
  EXPECT_EQ(heap_.Allocate(4097), nullptr);
  heap_.Free(all);
  EXPECT_NE(heap_.Allocate(1), nullptr);
}

TEST_F(SecretHeapTest, FreeingTwiceOrAStrangersPointerEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "fast");
  auto* const piece = static_cast<std::byte*>(heap_.Allocate(100));
  auto* const run = static_cast<std::byte*>(heap_.Allocate(10'000));
  EXPECT_DEATH(heap_.Free(piece + 16), "");
  EXPECT_DEATH(heap_.Free(run + SecretHeap::kPage), "");
  EXPECT_DEATH(heap_.Free(this), "");
  heap_.Free(piece);
  heap_.Free(run);
  EXPECT_DEATH(heap_.Free(piece), "");
  EXPECT_DEATH(heap_.Free(run), "");
}

TEST_F(SecretHeapTest, ThreadsDoNotMeet) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 1; t <= 4; ++t)
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<unsigned>(t));
      for (int i = 0; i < 5000; ++i) {
        const size_t size = 1 + random() % 3000;
        void* const piece = heap_.Allocate(size);
        if (piece == nullptr) continue;
        wrong += !IsZero(piece, size);
        std::memset(piece, t, size);
        const auto* const bytes = static_cast<const unsigned char*>(piece);
        wrong += static_cast<int>(std::count(bytes, bytes + size, t)) != static_cast<int>(size);
        heap_.Free(piece);
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(heap_.used(), 0u);
}

}  // namespace
}  // namespace kapsule
