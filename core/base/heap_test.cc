#include "core/base/heap.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace kapsule {
namespace {

size_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  size_t all = 0, resident = 0;
  file >> all >> resident;
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

// Settings are the whole process's, so each test has one: it ends with 0 where `test`
// returns true.
void ExpectInProcess(const std::function<bool()>& test) {
  EXPECT_EXIT(_exit(test() ? 0 : 1), testing::ExitedWithCode(0), "");
}

struct Free {
  void operator()(char* piece) const { std::free(piece); }
};
using Piece = std::unique_ptr<char, Free>;

Piece Allocate(size_t size) {
  Piece piece(static_cast<char*>(std::malloc(size)));
  std::memset(piece.get(), 1, size);
  return piece;
}

TEST(HeapTest, LargePiecesOfManyThreadsGoBackAtOnce) {
  ExpectInProcess([] {
    KeepHeapSmall();
    static std::atomic<int> freed = 0;
    const size_t before = ResidentBytes();
    for (int i = 0; i < 8; ++i)
      std::thread([] {
        std::vector<Piece> kept;
        for (int round = 0; round < 4; ++round) {
          const Piece large = Allocate(1 << 20);
          kept.push_back(Allocate(2000));  // behind it, where both are in an arena
        }
        ++freed;
        pause();  // its arena stays
      }).detach();
    for (int i = 0; i < 3000 && freed < 8; ++i) usleep(10'000);
    return freed == 8 && ResidentBytes() < before + (2 << 20);
  });
}

TEST(HeapTest, WhatLiesFreeBetweenUsedPiecesIsTrimmed) {
  ExpectInProcess([] {
    KeepHeapSmall();
    HeapTrimmer trimmer;
    trimmer.Trim();
    const size_t before = ResidentBytes();
    std::vector<Piece> all, kept;
    for (int i = 0; i < 4096; ++i) all.push_back(Allocate(16 << 10));
    for (size_t i = 0; i < all.size(); i += 64) kept.push_back(std::move(all[i]));
    all.clear();
    if (ResidentBytes() < before + (32 << 20)) return false;
    trimmer.Trim();
    return ResidentBytes() < before + (8 << 20);
  });
}

}  // namespace
}  // namespace kapsule
