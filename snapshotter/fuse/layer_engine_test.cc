#include "snapshotter/fuse/layer_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <thread>

#include "snapshotter/fuse/engine_test_layer.h"

namespace kapsule::fuse {
namespace {

using ::testing::HasSubstr;
using testing::MakeOpenLayer;
using testing::OpenLayer;

constexpr size_t kMiB = 1 << 20;
constexpr size_t kFile = 24 * kMiB + 12'345;

struct Form {
  bool encrypted;
  uint32_t chunk_size;
};

class EngineTest : public ::testing::Test {
 protected:
  EngineTest() { EXPECT_TRUE(engine_->Start().ok()); }
  std::unique_ptr<OpenLayer> Layer(const Form& form, size_t size = kFile) const {
    return MakeOpenLayer(size, form.encrypted, form.chunk_size, shared_);
  }
  // True where the bytes are right.
  bool ReadsWell(const OpenLayer& layer, uint64_t offset, size_t size, ReadScratch& scratch) {
    blob::AlignedBuffer out(size);
    const absl::Status status = testing::Read(*engine_, scratch, layer.reader, offset, out.bytes());
    EXPECT_TRUE(status.ok()) << offset << "+" << size << " " << status;
    return status.ok() &&
           AsText(out.bytes()) == std::string_view(layer.layer.plain).substr(offset, size);
  }
  bool ReadsWell(const OpenLayer& layer, uint64_t offset, size_t size) {
    return ReadsWell(layer, offset, size, scratch_);
  }
  absl::Status Read(const OpenLayer& layer, uint64_t offset, size_t size) {
    blob::AlignedBuffer out(size);
    return testing::Read(*engine_, scratch_, layer.reader, offset, out.bytes());
  }
  // Reads all of it in order, `size` bytes at a time.
  void ReadInOrder(const OpenLayer& layer, size_t size) {
    for (uint64_t at = 0; at < layer.covered(); at += size)
      ASSERT_TRUE(ReadsWell(layer, at, std::min<uint64_t>(size, layer.covered() - at))) << at;
  }

  const blob::LayerReader::Shared shared_{std::make_shared<archive::PageCache>(1 << 20),
                                          std::make_shared<blob::OpenerPool>()};
  const std::unique_ptr<LayerEngine> engine_ = *LayerEngine::Make(
      {.read_ahead_bytes = 12 * kMiB, .chunk_cache_bytes = 4 * kMiB, .io_threads = 4});
  ReadScratch scratch_;
};

class EngineFormTest : public EngineTest, public ::testing::WithParamInterface<Form> {
 protected:
  const std::unique_ptr<OpenLayer> layer_ = Layer(GetParam());
};
INSTANTIATE_TEST_SUITE_P(Forms, EngineFormTest,
                         ::testing::Values(Form{false, 65536}, Form{true, 4096}, Form{true, 16384},
                                           Form{true, 65536}, Form{true, 1 << 20}),
                         [](const auto& info) {
                           return fmt::format("{}{}", info.param.encrypted ? "Encrypted" : "Plain",
                                              info.param.chunk_size);
                         });

TEST_P(EngineFormTest, StreamsAreRight) {
  for (const size_t size : {kMiB, size_t{128 << 10}, size_t{5 << 10}, kMiB - 4096})
    ReadInOrder(*layer_, size);
}

TEST_P(EngineFormTest, EveryRangeIsRight) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 500; ++i) {
    const uint64_t offset = random() % layer_->covered();
    const size_t size =
        1 + random() % std::min<uint64_t>(layer_->covered() - offset, i % 3 == 0 ? 3 * kMiB : 9000);
    ASSERT_TRUE(ReadsWell(*layer_, offset, size)) << offset << "+" << size;
  }
  EXPECT_TRUE(ReadsWell(*layer_, layer_->covered() - 1, 1));
  EXPECT_TRUE(ReadsWell(*layer_, 0, 0));
}

TEST_P(EngineFormTest, NothingIsReadBeyondTheLayer) {
  std::byte one[2];
  for (const uint64_t offset : {layer_->covered() - 1, layer_->covered() + 1, ~uint64_t{0}}) {
    const auto status = engine_->TryRead(scratch_, layer_->reader, offset, one);
    ASSERT_TRUE(status.has_value());
    EXPECT_TRUE(absl::IsOutOfRange(*status));
    EXPECT_TRUE(absl::IsOutOfRange(engine_->ReadNow(scratch_, *layer_->reader, offset, one)));
  }
}

TEST_P(EngineFormTest, ThreadsReadTogether) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (uint64_t t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      ReadScratch scratch;
      std::mt19937_64 random(t);
      uint64_t at = t * kMiB;
      for (int i = 0; i < 150; ++i) {
        const bool small = t % 2 == 1 && i % 3 != 0;
        const size_t size = small ? 4096 : kMiB;
        if (small) at = random() % (layer_->covered() / 4096) * 4096;
        if (at + size > layer_->covered()) at = 0;
        wrong += !ReadsWell(*layer_, at, size, scratch);
        at += size;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_P(EngineFormTest, ADamagedByteFailsTheReadsOfItsChunkAlone) {
  if (!GetParam().encrypted) return;
  const uint64_t chunk_size = GetParam().chunk_size;
  const uint64_t bad = 9 * kMiB + 4097, begin = AlignDown(bad, chunk_size);
  for (const size_t size : {kMiB, size_t{4096}}) {
    layer_->source->damaged_at = bad;
    for (uint64_t at = 0; at + size <= layer_->covered(); at += size) {
      const bool touches = at < begin + chunk_size && at + size > begin;
      if (!touches) {
        ASSERT_TRUE(ReadsWell(*layer_, at, size)) << at;
        continue;
      }
      for (int i = 0; i < 2; ++i) {
        const absl::Status status = Read(*layer_, at, size);
        EXPECT_TRUE(absl::IsDataLoss(status)) << at << status;
        EXPECT_THAT(Message(status),
                    HasSubstr(fmt::format("chunk {} at byte {}", bad / chunk_size, begin)));
      }
    }
    // What is mended is read again.
    layer_->source->damaged_at = ~uint64_t{0};
    EXPECT_TRUE(ReadsWell(*layer_, AlignDown(bad, size), size));
  }
}

TEST_P(EngineFormTest, ATruncatedFileFailsWhatIsGone) {
  archive::Tag tag;  // the index, at the end of the file, has been read before
  for (const uint64_t at : {uint64_t{0}, layer_->covered() - 1}) {
    const uint64_t chunk = at / GetParam().chunk_size;
    ASSERT_EQ(layer_->reader->ReadTags(chunk, {&tag, 1}).ok(), GetParam().encrypted);
  }
  layer_->source->cut_at = 11 * kMiB;
  for (uint64_t at = 0; at < 11 * kMiB; at += kMiB) ASSERT_TRUE(ReadsWell(*layer_, at, kMiB));
  for (uint64_t at = 11 * kMiB; at + kMiB <= layer_->covered(); at += kMiB)
    EXPECT_TRUE(absl::IsDataLoss(Read(*layer_, at, kMiB))) << at;
  EXPECT_TRUE(absl::IsDataLoss(Read(*layer_, 11 * kMiB, 4096)));
  layer_->source->cut_at = ~uint64_t{0};
  ReadInOrder(*layer_, kMiB);
}

TEST_F(EngineTest, AStreamReadsEachByteOnceAndMostlyAhead) {
  const auto layer = Layer({true, 65536});
  layer->source->reads = layer->source->bytes_read = 0;
  ReadInOrder(*layer, kMiB);
  EXPECT_LT(layer->source->bytes_read, layer->covered() + kMiB);
  EXPECT_LT(layer->source->reads, 3 + 12 + 6u);  // direct ones, blocks, pages of tags
}

TEST_F(EngineTest, ALargeRandomReadReadsItsChunksAlone) {
  const auto layer = Layer({true, 65536});
  EXPECT_TRUE(ReadsWell(*layer, 0, 1));
  for (const uint64_t at : {15, 3, 21, 9, 18, 6, 12, 1}) {
    layer->source->bytes_read = 0;
    EXPECT_TRUE(ReadsWell(*layer, at * kMiB, kMiB));
    EXPECT_EQ(layer->source->bytes_read, kMiB);
  }
}

TEST_F(EngineTest, AChunkThatWasReadIsNotReadAgain) {
  const auto layer = Layer({true, 65536});
  EXPECT_TRUE(ReadsWell(*layer, 5 * kMiB, 4096));
  layer->source->reads = 0;
  for (uint64_t at = 0; at < 65536; at += 4096) EXPECT_TRUE(ReadsWell(*layer, 5 * kMiB + at, 4096));
  EXPECT_EQ(layer->source->reads, 0u);
  std::byte out[4096];
  EXPECT_TRUE(engine_->TryRead(scratch_, layer->reader, 5 * kMiB, out).has_value());
  EXPECT_FALSE(engine_->TryRead(scratch_, layer->reader, 5 * kMiB + 65530, out).has_value());
}

TEST_F(EngineTest, ABadIndexPageFailsTheReadsThatNeedIt) {
  // Two pages of tags: of the first 16 MiB, and of what follows.
  const auto layer = Layer({true, 4096});
  layer->source->damaged_at = layer->layer.header.covered_length + 2000 + 65536;
  EXPECT_TRUE(ReadsWell(*layer, 0, kMiB));
  for (uint64_t at = 0; at < 15 * kMiB; at += kMiB) EXPECT_TRUE(ReadsWell(*layer, at, kMiB));
  for (uint64_t at = 16 * kMiB; at < 24 * kMiB; at += kMiB) {
    const absl::Status status = Read(*layer, at, kMiB);
    EXPECT_TRUE(absl::IsDataLoss(status));
    EXPECT_THAT(Message(status), HasSubstr("index page"));
  }
  layer->source->damaged_at = ~uint64_t{0};
  ReadInOrder(*layer, kMiB);
}

TEST_F(EngineTest, WithoutMemoryForCachesAllIsReadDirectly) {
  const auto engine =
      *LayerEngine::Make({.read_ahead_bytes = 0, .chunk_cache_bytes = 0, .io_threads = 1});
  ASSERT_TRUE(engine->Start().ok());
  const auto layer = Layer({true, 65536}, 5 * kMiB);
  blob::AlignedBuffer out(kMiB);
  for (const size_t size : {kMiB, size_t{4096}})
    for (uint64_t at = 0; at + size <= layer->covered(); at += size) {
      const MutableByteSpan some = out.bytes().first(size);
      ASSERT_FALSE(engine->TryRead(scratch_, layer->reader, at, some).has_value());
      ASSERT_TRUE(engine->ReadNow(scratch_, *layer->reader, at, some).ok());
      ASSERT_TRUE(AsText(some) == std::string_view(layer->layer.plain).substr(at, size));
    }
}

TEST_F(EngineTest, DeferredReadsThatNeedNoBlockAreDoneToo) {
  const auto layer = Layer({true, 65536});
  std::atomic<int> done{0};
  for (int i = 0; i < 50; ++i) {
    auto read = std::make_shared<DeferredRead>();
    read->finish = [&](ReadScratch&, unsigned thread) {
      EXPECT_LT(thread, 4u);
      ++done;
    };
    engine_->Defer(layer->reader->id(), i * 4096, i == 0 ? 0 : 4096, std::move(read));
  }
  while (done != 50) std::this_thread::yield();
}

TEST_F(EngineTest, AThreadOutlivesAReadWithoutMemory) {
  const auto layer = Layer({true, 65536});
  std::atomic<int> done{0};
  for (int i = 0; i < 20; ++i) {
    auto read = std::make_shared<DeferredRead>();
    read->finish = [&done](ReadScratch&, unsigned) {
      ++done;
      throw std::bad_alloc();
    };
    engine_->Defer(layer->reader->id(), i * 4096, 4096, std::move(read));
  }
  while (done != 20) std::this_thread::yield();
}

TEST_F(EngineTest, AnEngineEndsWithReadsUnderWay) {
  for (int i = 0; i < 20; ++i) {
    const auto layer = Layer({true, 65536}, 12 * kMiB);
    const auto engine = *LayerEngine::Make({.io_threads = 2});
    ASSERT_TRUE(engine->Start().ok());
    blob::AlignedBuffer out(kMiB);
    for (uint64_t at = 0; at < 5 * kMiB; at += kMiB)
      (void)engine->TryRead(scratch_, layer->reader, at, out.bytes());
    for (uint64_t at = 4 * kMiB; at < 8 * kMiB; at += kMiB) {
      auto read = std::make_shared<DeferredRead>();
      read->finish = [](ReadScratch&, unsigned) {};
      engine->Defer(layer->reader->id(), at, kMiB, std::move(read));
    }
  }
}

}  // namespace
}  // namespace kapsule::fuse
