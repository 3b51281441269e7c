#include "snapshotter/fuse/read_engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <random>
#include <thread>

#include "snapshotter/fuse/test_views.h"

namespace kapsule::fuse {
namespace {

constexpr size_t kMiB = 1 << 20;

class ReadEngineTest : public ::testing::Test {
 protected:
  ReadEngineTest() { EXPECT_TRUE(engine_->Start().ok()); }

  // As a worker reads it; a read that waits is finished by an I/O thread.
  absl::Status Read(ReadScratch& scratch, uint64_t offset, MutableByteSpan out) {
    if (const auto status = engine_->TryRead(scratch, *view(), offset, out)) return *status;
    const auto size = static_cast<uint32_t>(out.size());
    if (!engine_->InStream(*view(), offset, size) && offset % 3 != 0)
      return engine_->ReadNow(scratch, *view(), offset, out);
    std::promise<absl::Status> done;
    engine_->Defer({view(), offset, size, [&](ReadScratch& own, const Reply& reply) {
                      const MutableByteSpan body = reply.body().first(size);
                      absl::Status status = engine_->ReadNow(own, *view(), offset, body);
                      std::memcpy(out.data(), body.data(), size);
                      done.set_value(std::move(status));
                    }});
    return done.get_future().get();
  }
  bool ReadsWell(ReadScratch& scratch, uint64_t offset, size_t size) {
    std::string out(size, '#');
    const absl::Status status = Read(scratch, offset, std::as_writable_bytes(std::span(out)));
    EXPECT_TRUE(status.ok()) << status;
    return out == bytes_.substr(offset, size);
  }
  const ViewPtr& view() const { return made_->view; }

  const std::unique_ptr<ReadEngine> engine_ = *ReadEngine::Make(
      {.read_ahead_bytes = 12 * kMiB, .chunk_cache_bytes = 2 * kMiB, .io_threads = 4});
  const std::unique_ptr<testing::TestView> made_ =
      testing::MakeTestView(testing::DigestStarting("ab"), 16 * kMiB + 777);
  const std::string bytes_ = testing::BytesOf(*made_);
};

TEST_F(ReadEngineTest, EveryKindOfBytesMeetsTheNext) {
  ReadScratch scratch;
  const uint64_t tar = view()->metadata_size(), zeros = tar + view()->tar_length();
  for (const uint64_t edge : {uint64_t{0}, tar, zeros, view()->size()})
    for (const int64_t from : {-70'000, -4096, -1, 0, 1})
      for (const size_t size : {1, 2, 4096, 140'000}) {
        const uint64_t offset = edge + static_cast<uint64_t>(from);
        if (offset > view()->size() || size > view()->size() - offset) continue;
        EXPECT_TRUE(ReadsWell(scratch, offset, size)) << offset << "+" << size;
      }
}

TEST_F(ReadEngineTest, ThreadsReadStreamsAndPagesTogether) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (uint64_t t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      ReadScratch scratch;
      std::mt19937_64 random(t);
      for (uint64_t i = 0; i < 100; ++i) {
        const size_t size = t % 2 == 0 ? kMiB : 4096;
        const uint64_t pages = (view()->size() - size) / 4096;
        const uint64_t page = t % 2 == 0 ? i * 256 : random();
        wrong += !ReadsWell(scratch, page % pages * 4096, size);
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(ReadEngineTest, AfterAnErrorAllIsZero) {
  ReadScratch scratch;
  char& bad = made_->layer.bytes[5 * kMiB];
  bad = static_cast<char>(bad ^ 1);
  std::string out(kMiB, '#');
  const uint64_t offset = view()->metadata_size() + 5 * kMiB - kMiB / 2;
  EXPECT_TRUE(absl::IsDataLoss(Read(scratch, offset, std::as_writable_bytes(std::span(out)))));
  EXPECT_EQ(out, std::string(kMiB, '\0'));
  for (const uint64_t beyond : {view()->size() - 1, ~uint64_t{0}}) {
    std::string two(2, '#');
    EXPECT_TRUE(absl::IsOutOfRange(Read(scratch, beyond, std::as_writable_bytes(std::span(two)))));
    EXPECT_EQ(two, std::string(2, '\0'));
  }
}

}  // namespace
}  // namespace kapsule::fuse
