#include "snapshotter/fuse/chunk_cache.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <thread>

namespace kapsule::fuse {
namespace {

constexpr size_t kMiB = 1 << 20;
constexpr uint64_t kMagic = 0x1234'5678'9ABC'DEF0;

// Fills a frame with what says whose it is.
void Put(ChunkCache& cache, uint64_t layer, uint64_t chunk, size_t size) {
  const ChunkCache::Pin pin = cache.Allocate(size);
  ASSERT_TRUE(pin);
  ASSERT_EQ(pin.bytes().size(), size);
  StoreLe(pin.bytes().data(), layer * kMagic + chunk);
  StoreLe(pin.bytes().last(8).data(), layer * kMagic + chunk);
  cache.Keep(pin, layer, chunk);
}

// Whether it is there; checks what is.
bool Has(ChunkCache& cache, uint64_t layer, uint64_t chunk) {
  const ChunkCache::Pin pin = cache.Find(layer, chunk);
  if (!pin) return false;
  EXPECT_EQ(LoadLe<uint64_t>(pin.bytes().data()), layer * kMagic + chunk);
  EXPECT_EQ(LoadLe<uint64_t>(pin.bytes().last(8).data()), layer * kMagic + chunk);
  return true;
}

size_t Count(ChunkCache& cache, uint64_t layer, uint64_t chunks) {
  size_t count = 0;
  for (uint64_t n = 0; n < chunks; ++n) count += Has(cache, layer, n);
  return count;
}

TEST(ChunkCacheTest, KeepsTheChunksThatWereUsedLast) {
  const auto cache = *ChunkCache::Make(2 * kMiB);
  for (uint64_t n = 0; n < 32; ++n) Put(*cache, 1, n, 65536);
  EXPECT_EQ(Count(*cache, 1, 32), 32u);
  EXPECT_TRUE(Has(*cache, 1, 0));
  Put(*cache, 1, 32, 65536);
  EXPECT_TRUE(Has(*cache, 1, 0));
  EXPECT_FALSE(Has(*cache, 1, 1));
  EXPECT_EQ(Count(*cache, 1, 33), 32u);
  EXPECT_FALSE(Has(*cache, 2, 0));
}

TEST(ChunkCacheTest, FramesDoNotOverlapAndStayInsideTheLimit) {
  const auto cache = *ChunkCache::Make(3 * kMiB);
  std::vector<ChunkCache::Pin> pins;
  std::set<std::byte*> begins;
  for (const size_t size : {4096, 65536, 1 << 20})
    for (size_t i = 0; i < kMiB / size; ++i) {
      pins.push_back(cache->Allocate(size));
      ASSERT_TRUE(pins.back()) << size << " " << i;
      for (size_t at = 0; at < size; at += 4096)
        EXPECT_TRUE(begins.insert(pins.back().bytes().data() + at).second);
    }
  EXPECT_FALSE(cache->Allocate(4096));
  EXPECT_FALSE(cache->Allocate(1 << 20));
  pins.pop_back();
  EXPECT_TRUE(cache->Allocate(4096));
}

TEST(ChunkCacheTest, AnotherChunkSizeTakesItsShare) {
  const auto cache = *ChunkCache::Make(8 * kMiB);
  for (uint64_t n = 0; n < 1000; ++n) Put(*cache, 1, n, 65536);
  EXPECT_EQ(Count(*cache, 1, 1000), 128u);
  for (uint64_t n = 0; n < 10'000; ++n) Put(*cache, 2, n, 16384);
  EXPECT_EQ(Count(*cache, 1, 1000), 64u);
  EXPECT_EQ(Count(*cache, 2, 10'000), 256u);
  EXPECT_TRUE(Has(*cache, 1, 999));
}

TEST(ChunkCacheTest, AFrameThatWasNotKeptIsFreeAgain) {
  const auto cache = *ChunkCache::Make(kMiB);
  Put(*cache, 1, 1, 524288);
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(cache->Allocate(524288));
  EXPECT_TRUE(Has(*cache, 1, 1));
}

TEST(ChunkCacheTest, TheFirstOfTwoThatLoadedAChunkIsKept) {
  const auto cache = *ChunkCache::Make(kMiB);
  const ChunkCache::Pin other = cache->Allocate(65536);
  Put(*cache, 1, 1, 65536);
  cache->Keep(other, 1, 1);
  EXPECT_TRUE(Has(*cache, 1, 1));
}

TEST(ChunkCacheTest, APinnedChunkIsNeitherReusedNorMoved) {
  const auto cache = *ChunkCache::Make(kMiB);
  Put(*cache, 1, 1, 65536);
  const ChunkCache::Pin pin = cache->Find(1, 1);
  for (uint64_t n = 0; n < 100; ++n) Put(*cache, 2, n, 65536);
  EXPECT_TRUE(Has(*cache, 1, 1));
  EXPECT_FALSE(cache->Allocate(4096));  // would take the only region
}

TEST(ChunkCacheTest, WithoutMemoryNothingIsKept) {
  const auto cache = *ChunkCache::Make(kMiB - 1);
  EXPECT_FALSE(cache->Allocate(65536));
  EXPECT_FALSE(cache->Find(1, 1));
}

TEST(ChunkCacheTest, ThreadsUseItTogether) {
  const auto cache = *ChunkCache::Make(4 * kMiB);
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t)
    threads.emplace_back([&cache, t] {
      std::mt19937_64 random(t);
      for (int i = 0; i < 20'000; ++i) {
        const uint64_t layer = 1 + random() % 3, chunk = random() % 200;
        if (!Has(*cache, layer, chunk)) Put(*cache, layer, chunk, size_t{16384} << layer);
      }
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace kapsule::fuse
