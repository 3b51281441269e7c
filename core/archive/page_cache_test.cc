#include "core/archive/page_cache.h"

#include <gtest/gtest.h>

namespace kapsule::archive {
namespace {

PageCache::Page PageOf(size_t size) { return std::make_shared<Bytes>(size); }

TEST(PageCacheTest, DropsTheLeastRecentlyUsedPageFirst) {
  PageCache cache(3 * 5000);
  for (uint64_t n = 0; n < 3; ++n) cache.Keep({1, n}, PageOf(4096));
  EXPECT_NE(cache.Find({1, 0}), nullptr);
  cache.Keep({2, 0}, PageOf(4096));
  EXPECT_EQ(cache.Find({1, 1}), nullptr);
  EXPECT_NE(cache.Find({1, 0}), nullptr);
  EXPECT_NE(cache.Find({1, 2}), nullptr);
  EXPECT_LE(cache.bytes(), 3u * 5000);
}

TEST(PageCacheTest, KeepsOnePageThatIsLargerThanTheLimit) {
  PageCache cache(100);
  cache.Keep({1, 1}, PageOf(4096));
  EXPECT_NE(cache.Find({1, 1}), nullptr);
  cache.Keep({1, 2}, PageOf(4096));
  EXPECT_EQ(cache.Find({1, 1}), nullptr);
}

TEST(PageCacheTest, SmallPagesAreCountedWithWhatTheirPlaceTakes) {
  PageCache cache(100'000);
  for (uint64_t n = 0; n < 10'000; ++n) cache.Keep({n, 0}, PageOf(16));
  size_t kept = 0;
  for (uint64_t n = 0; n < 10'000; ++n) kept += cache.Find({n, 0}) != nullptr;
  EXPECT_LT(kept, 500u);
}

TEST(PageCacheTest, ForgetsOneOwnerAlone) {
  PageCache cache(1 << 20);
  for (uint64_t owner = 1; owner <= 3; ++owner)
    for (uint64_t n : {uint64_t{0}, uint64_t{7}, ~uint64_t{0}}) cache.Keep({owner, n}, PageOf(100));
  const size_t all = cache.bytes();
  cache.Forget(2);
  EXPECT_EQ(cache.bytes(), all / 3 * 2);
  EXPECT_EQ(cache.Find({2, 7}), nullptr);
  EXPECT_NE(cache.Find({1, ~uint64_t{0}}), nullptr);
  EXPECT_NE(cache.Find({3, 0}), nullptr);
}

}  // namespace
}  // namespace kapsule::archive
