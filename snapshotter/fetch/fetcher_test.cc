#include "snapshotter/fetch/fetcher.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include "core/blob/layer_reader.h"
#include "snapshotter/fetch/test_fetch.h"

namespace kapsule::fetch {
namespace {

using absl::StatusCode;

class FetcherTest : public FetchTest {
 protected:
  const blob::TestLayer layer_ = LayerOf(20 << 20);
  const oci::Digest blob_ = NameOf(layer_).digest;
  const uint64_t blocks_ = BlocksOf(layer_);
  const std::shared_ptr<TestSource> source_ = Serve(layer_);

  void Damage(uint64_t offset) {
    const UniqueFd file = OpenFile(FileOf(layer_), O_WRONLY).value();
    ASSERT_EQ(pwrite(file.get(), "damage", 6, static_cast<off_t>(offset)), 6);
    ASSERT_EQ(fsync(file.get()), 0);
  }
  std::string InFile(uint64_t offset, size_t size) {
    std::string bytes(size, '\0');
    const auto file = blob::DirectFileReader::Open(FileOf(layer_)).value();
    EXPECT_TRUE(file->ReadAt(offset, std::as_writable_bytes(std::span(bytes))).ok());
    return bytes;
  }
  bool AllFailedWith(StatusCode code) {
    return !fuse_->failed.empty() && fuse_->failed.front().why.code() == code;
  }
  bool WaitForFailure() {
    return fuse_->Until([&] { return !fuse_->failed.empty(); });
  }
};

TEST_F(FetcherTest, AnOpenBlobHasHeaderAndTocAndLittleElse) {
  Begin();
  absl::StatusOr<UniqueFd> file = Open(layer_);
  ASSERT_TRUE(file.ok()) << file.status();
  auto blob = blob::DirectFileReader::Adopt(*std::move(file)).value();
  EXPECT_EQ(blob->size(), layer_.bytes.size());
  const auto reader = blob::LayerReader::Open(std::move(blob), layer_.ref, layer_.key.Clone());
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_TRUE((*reader)->ReadToc().ok());
  EXPECT_LE(fetcher_->counters().blocks_fetched, 2u);
}

TEST_F(FetcherTest, WantedBlocksComeAndCanBeReadWithTheirTags) {
  Begin();
  UniqueFd file = Open(layer_).value();
  ASSERT_TRUE(fuse_->Get(blob_, {0, blocks_}));
  auto blob = blob::DirectFileReader::Adopt(std::move(file)).value();
  const auto reader =
      blob::LayerReader::Open(std::move(blob), layer_.ref, layer_.key.Clone()).value();
  std::string plain(layer_.header.covered_length, '\0');
  ASSERT_TRUE(reader->Read(0, std::as_writable_bytes(std::span(plain))).ok());
  EXPECT_EQ(plain, layer_.plain.substr(0, plain.size()));
  EXPECT_TRUE(fuse_->failed.empty());
  EXPECT_EQ(fetcher_->counters().waiting_blocks, 0u);
}

TEST_F(FetcherTest, ABlockIsFetchedOnceHoweverManyWaitForIt) {
  Begin();
  ASSERT_TRUE(Open(layer_).ok());
  source_->Hold(true);
  for (int i = 0; i < 5; ++i) fuse_->Want(blob_, {3, 2});
  while (source_->ReadsOf(3 << 20) == 0) absl::SleepFor(absl::Milliseconds(1));
  source_->Hold(false);
  ASSERT_TRUE(fuse_->Until([&] { return fuse_->HasAll(blob_, {3, 2}); }));
  EXPECT_EQ(source_->ReadsOf(3 << 20), 1u);
  EXPECT_EQ(source_->ReadsOf(4 << 20), 1u);
}

TEST_F(FetcherTest, AReaderWhoGoesThroughGetsWhatComesNext) {
  Begin();
  ASSERT_TRUE(Open(layer_).ok());
  for (uint64_t block = 0; block < 4; ++block) ASSERT_TRUE(fuse_->Get(blob_, {block, 1}));
  EXPECT_TRUE(fuse_->Until([&] { return fuse_->HasAll(blob_, {4, 8}); }));
  EXPECT_TRUE(fuse_->failed.empty());
}

TEST_F(FetcherTest, WhatIsThereSurvivesARestartWithoutTheRegistry) {
  Begin();
  ASSERT_TRUE(Open(layer_).ok());
  ASSERT_TRUE(fuse_->Get(blob_, {2, 5}));
  End();
  source_->FailWith(Unavailable("the registry is down"));
  Begin();
  ASSERT_TRUE(Open(layer_).ok());
  EXPECT_TRUE(fuse_->Until([&] { return fuse_->HasAll(blob_, {2, 5}); }));
}

TEST_F(FetcherTest, AWantMayComeBeforeTheBlobIsOpened) {
  Begin();
  fuse_->Want(blob_, {1, 1});
  fuse_->Want(blob_, {blocks_, 1});
  while (fetcher_->counters().waiting_blocks < 2) absl::SleepFor(absl::Milliseconds(1));
  ASSERT_TRUE(Open(layer_).ok());
  EXPECT_TRUE(fuse_->Until([&] { return fuse_->HasAll(blob_, {1, 1}) && !fuse_->failed.empty(); }));
  EXPECT_TRUE(AllFailedWith(StatusCode::kOutOfRange));
  EXPECT_EQ(fuse_->failed.front().first, blocks_);
}

TEST_F(FetcherTest, AnOpeningThatRanOutOfMemoryIsOver) {
  Begin();
  source_->RunOutOfMemory();
  EXPECT_THROW(Open(layer_).IgnoreError(), std::bad_alloc);
  EXPECT_EQ(fetcher_->counters().open_blobs, 0u);
  EXPECT_TRUE(Open(layer_).ok());
}

TEST_F(FetcherTest, ASuspectOfABlobThatIsNotOpenIsToBeSentAgain) {
  Begin();
  fuse_->Send(blob_, control::FetchSuspect{1});
  ASSERT_TRUE(WaitForFailure());
  EXPECT_TRUE(AllFailedWith(StatusCode::kAborted));
}

TEST_F(FetcherTest, AForbiddenBlobFailsAtOnceAndHealsWhenItIsAllowed) {
  Begin();
  ASSERT_TRUE(Open(layer_).ok());
  source_->FailWith(PermissionDenied("registry answered 403"));
  fuse_->Want(blob_, {0, 3});
  ASSERT_TRUE(WaitForFailure());
  EXPECT_TRUE(AllFailedWith(StatusCode::kPermissionDenied));
  source_->FailWith(absl::OkStatus());
  EXPECT_TRUE(fuse_->Until([&] {
    fuse_->Want(blob_, {0, 3});
    return fuse_->HasAll(blob_, {0, 3});
  }));
}

TEST_F(FetcherTest, AReadWaitsForARegistryThatComesBack) {
  Begin();
  ASSERT_TRUE(Open(layer_).ok());
  source_->FailWith(Unavailable("connection refused"));
  fuse_->Want(blob_, {0, 3});
  while (fetcher_->counters().retries < 2) absl::SleepFor(absl::Milliseconds(5));
  source_->FailWith(absl::OkStatus());
  EXPECT_TRUE(fuse_->Until([&] { return fuse_->HasAll(blob_, {0, 3}); }));
  EXPECT_TRUE(fuse_->failed.empty());
}

TEST_F(FetcherTest, AReadWaitsNoLongerThanItsTime) {
  FetcherOptions options = Quiet();
  options.read_timeout = absl::Seconds(2);
  Begin(options);
  ASSERT_TRUE(Open(layer_).ok());
  source_->FailWith(Unavailable("connection refused"));
  fuse_->Want(blob_, {0, 3});
  ASSERT_TRUE(WaitForFailure());
  EXPECT_TRUE(AllFailedWith(StatusCode::kDeadlineExceeded));
  EXPECT_NE(Message(fuse_->failed.front().why).find("connection refused"), std::string::npos);
  EXPECT_EQ(fetcher_->counters().waiting_blocks, 0u);
}

TEST_F(FetcherTest, OtherBytesThanTheIndexNamesAreNeverAnnounced) {
  Begin();
  ASSERT_TRUE(Open(layer_).ok());
  source_->BreakByte((2 << 20) + 5);
  fuse_->Want(blob_, {2, 1});
  ASSERT_TRUE(WaitForFailure());
  EXPECT_TRUE(AllFailedWith(StatusCode::kDataLoss));
  EXPECT_FALSE(fuse_->HasAll(blob_, {2, 1}));
  EXPECT_GE(fetcher_->counters().blocks_refused, 3u);
}

TEST_F(FetcherTest, AHeaderThatIsNotTheIndexesIsRefused) {
  Begin();
  source_->BreakByte(layer_.ref.offset + 90);
  const auto file = Open(layer_, absl::Milliseconds(600));
  EXPECT_EQ(file.status().code(), StatusCode::kDataLoss) << file.status();
}

TEST_F(FetcherTest, ASuspectBlockIsMended) {
  Begin();
  ASSERT_TRUE(Open(layer_).ok());
  ASSERT_TRUE(fuse_->Get(blob_, {5, 1}));
  fuse_->Send(blob_, control::FetchSuspect{5});
  ASSERT_TRUE(fuse_->Until([&] { return fuse_->checked.size() == 1; }));
  EXPECT_EQ(fetcher_->counters().mended, 0u);
  Damage((5 << 20) + 77);
  fuse_->Send(blob_, control::FetchSuspect{5});
  ASSERT_TRUE(fuse_->Until([&] { return fuse_->checked.size() == 2; }));
  EXPECT_EQ(fetcher_->counters().mended, 1u);
  EXPECT_EQ(InFile(5 << 20, 1 << 20), layer_.bytes.substr(5 << 20, 1 << 20));
}

TEST_F(FetcherTest, ADamagedPageOfTagsIsMendedWithTheBlock) {
  Begin();
  ASSERT_TRUE(Open(layer_).ok());
  ASSERT_TRUE(fuse_->Get(blob_, {5, 1}));
  const uint64_t tags = archive::LayoutOf(layer_.header).tags.levels[0].offset;
  Damage(tags + 5);
  fuse_->Send(blob_, control::FetchSuspect{5});
  ASSERT_TRUE(fuse_->Until([&] { return fuse_->checked.size() == 1; }));
  EXPECT_EQ(InFile(tags, 64), layer_.bytes.substr(tags, 64));
}

TEST_F(FetcherTest, ASuspectThatCannotBeMendedFails) {
  FetcherOptions options = Quiet();
  options.read_timeout = absl::Seconds(2);
  Begin(options);
  ASSERT_TRUE(Open(layer_).ok());
  ASSERT_TRUE(fuse_->Get(blob_, {5, 1}));
  Damage((5 << 20) + 77);
  source_->FailWith(Unavailable("connection refused"));
  fuse_->Send(blob_, control::FetchSuspect{5});
  ASSERT_TRUE(WaitForFailure());
  EXPECT_TRUE(fuse_->checked.empty());
  EXPECT_EQ(fuse_->failed.front().first, 5u);
}

TEST_F(FetcherTest, ClosingEndsWhatWaits) {
  Begin();
  ASSERT_TRUE(Open(layer_).ok());
  source_->FailWith(Unavailable("connection refused"));
  fuse_->Want(blob_, {0, 2});
  while (fetcher_->counters().retries == 0) absl::SleepFor(absl::Milliseconds(5));
  fetcher_->Close(blob_);
  ASSERT_TRUE(WaitForFailure());
  EXPECT_TRUE(AllFailedWith(StatusCode::kCancelled));
  EXPECT_EQ(fetcher_->counters().open_blobs, 0u);
}

TEST_F(FetcherTest, AForgottenBlobIsDeletedWhenItIsClosed) {
  Begin();
  ASSERT_TRUE(Open(layer_).ok());
  fetcher_->Forget(blob_);
  EXPECT_TRUE(std::filesystem::exists(FileOf(layer_)));
  EXPECT_TRUE(fuse_->Get(blob_, {0, 1}));  // reads are served all the same
  fetcher_->Close(blob_);
  while (fetcher_->counters().cached_blobs > 0) absl::SleepFor(absl::Milliseconds(5));
  EXPECT_FALSE(std::filesystem::exists(FileOf(layer_)));
  EXPECT_EQ(fetcher_->counters().cache_bytes, 0u);
  ASSERT_TRUE(Open(layer_).ok());
  EXPECT_TRUE(fuse_->Get(blob_, {0, 1}));
}

TEST_F(FetcherTest, AnOpenBlobTakesNoOtherIndex) {
  Begin();
  ASSERT_TRUE(Open(layer_).ok());
  BlobName other = NameOf(layer_);
  other.index.root = oci::Digest::Of(AsBytes("another"));
  const auto file =
      fetcher_->Open(other, {other.digest, other.size, {}, {}}, absl::Now() + absl::Seconds(5));
  EXPECT_EQ(file.status().code(), StatusCode::kFailedPrecondition) << file.status();
}

TEST_F(FetcherTest, ABlobThatIsClosedWhileItIsOpenedStaysClosed) {
  Begin();
  source_->Hold(true);
  std::thread opens([&] { (void)Open(layer_); });
  while (source_->reads().empty()) absl::SleepFor(absl::Milliseconds(1));
  fetcher_->Close(blob_);
  source_->Hold(false);
  opens.join();
  EXPECT_EQ(fetcher_->counters().open_blobs, 0u);
}

TEST_F(FetcherTest, AnOpeningThatBeginsTooLateOpensNothing) {
  Begin();
  ASSERT_TRUE(Open(layer_).ok());
  fetcher_->Close(blob_);
  EXPECT_EQ(Open(layer_, absl::ZeroDuration()).status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(fetcher_->counters().open_blobs, 0u);
}

TEST_F(FetcherTest, TheFileOfAnOpenBlobWaitsForNoRegistry) {
  Begin();
  ASSERT_TRUE(Open(layer_).ok());
  const uint64_t toc = layer_.header.tar_length, block = toc / layer_.header.block_size;
  Damage(toc + 5);
  source_->FailWith(Unavailable("connection refused"));
  fuse_->Send(blob_, control::FetchSuspect{block});
  ASSERT_TRUE(fuse_->Until([&] { return !fetcher_->Look(blob_, 0).blocks.test(block); }));
  EXPECT_TRUE(Open(layer_, absl::Seconds(5)).ok());
}

TEST_F(FetcherTest, TheRestIsFetchedWhereThatIsWished) {
  FetcherOptions options = Quiet();
  options.fill = Fill::kEager;
  Begin(options);
  ASSERT_TRUE(Open(layer_).ok());
  EXPECT_TRUE(fuse_->Until([&] { return fuse_->HasAll(blob_, {0, blocks_}); }));
  for (uint64_t block = 0; block < blocks_; ++block)
    EXPECT_LE(source_->ReadsOf(block << 20), 2u) << block;  // the end is read for its header too
}

TEST_F(FetcherTest, MoreThanCanWaitIsRefused) {
  Begin();
  for (uint64_t i = 0; i < 33; ++i) fuse_->Want(blob_, {i * 2048, 2048});
  ASSERT_TRUE(WaitForFailure());
  EXPECT_TRUE(AllFailedWith(StatusCode::kResourceExhausted));
}

}  // namespace
}  // namespace kapsule::fetch
