#include "snapshotter/fuse/remote_blob.h"

#include <absl/time/clock.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <thread>

namespace kapsule::fuse {
namespace {

using control::FetchChecked;
using control::FetchDrop;
using control::FetchDropped;
using control::FetchFailed;
using control::FetchHave;
using control::FetchPacket;
using control::FetchSuspect;
using control::FetchWant;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kBlock = 64 << 10, kCovered = 10 * kBlock, kSize = kCovered + 5000;

// Bytes that say where they are; a read can be held up.
class TestFile final : public ReaderAt {
 public:
  explicit TestFile(char first = 'a') : first_(first) {}
  uint64_t size() const override { return kSize; }
  absl::Status ReadAt(uint64_t offset, MutableByteSpan out) const override {
    if (before_read) before_read();
    for (size_t i = 0; i < out.size(); ++i)
      out[i] = static_cast<std::byte>(first_ + (offset + i) / kBlock);
    return absl::OkStatus();
  }
  std::function<void()> before_read;

 private:
  const char first_;
};

archive::IndexHeader HeaderOf(uint64_t covered, uint32_t block_size) {
  archive::IndexHeader header;
  header.covered_length = covered;
  header.block_size = block_size;
  return header;
}

std::string TextOf(const FetchPacket& packet) {
  if (const auto* p = std::get_if<FetchWant>(&packet.body))
    return fmt::format("want {}+{}", p->first, p->count);
  if (const auto* p = std::get_if<FetchSuspect>(&packet.body))
    return fmt::format("suspect {}", p->block);
  if (const auto* p = std::get_if<FetchDropped>(&packet.body))
    return fmt::format("dropped {}+{}", p->first, p->count);
  return "something else";
}

class RemoteBlobTest : public ::testing::Test {
 protected:
  RemoteBlobTest() {
    blob_ = *RemoteBlob::Make(digest_, {file_, {1, 1}}, HeaderOf(kCovered, kBlock),
                              [this](const FetchPacket& packet) {
                                EXPECT_EQ(packet.blob, digest_);
                                sent_.push_back(TextOf(packet));
                              });
    reader_ = RemoteBlob::ReaderOf(blob_);
  }
  std::vector<std::string> Sent() { return std::exchange(sent_, {}); }
  template <typename Body>
  void Say(Body body) {
    blob_->Handle({digest_, std::move(body)});
  }
  void SayHave(std::initializer_list<uint64_t> blocks, uint64_t first = 0) {
    FetchHave have{first, {}};
    for (const uint64_t block : blocks) have.blocks.set(block - first);
    Say(have);
  }
  // What is said of a range when it is known; "" until then.
  std::shared_ptr<std::string> Wait(uint64_t offset, size_t size) {
    auto text = std::make_shared<std::string>();
    reader_->WhenThere(offset, size, [text](const absl::Status& status) {
      EXPECT_EQ(*text, "") << "called twice";
      *text = status.ok() ? "there" : Describe(status);
    });
    return text;
  }
  std::string Read(uint64_t offset, size_t size) {
    std::string out(size, '#');
    const absl::Status status = reader_->ReadAt(offset, std::as_writable_bytes(std::span(out)));
    return status.ok() ? out : Describe(status);
  }

  const oci::Digest digest_ = oci::Digest::Of(AsBytes("blob"));
  const std::shared_ptr<TestFile> file_ = std::make_shared<TestFile>();
  std::vector<std::string> sent_;
  std::shared_ptr<RemoteBlob> blob_;
  std::unique_ptr<ReaderAt> reader_;
};

TEST_F(RemoteBlobTest, BlocksAreReadWhenTheyAreThereAndTheIndexAlways) {
  EXPECT_FALSE(reader_->IsThere(0, 1));
  EXPECT_THAT(Read(0, 1), HasSubstr("unavailable"));
  EXPECT_TRUE(reader_->IsThere(kCovered, 5000));
  EXPECT_EQ(Read(kCovered, 2), "kk");
  EXPECT_TRUE(reader_->IsThere(kCovered - 1, 0)) << "nothing";
  SayHave({3});
  EXPECT_TRUE(reader_->IsThere(3 * kBlock, kBlock));
  EXPECT_FALSE(reader_->IsThere(3 * kBlock - 1, 2));
  EXPECT_FALSE(reader_->IsThere(4 * kBlock - 1, 2));
  EXPECT_EQ(Read(3 * kBlock, 1), "d");
  EXPECT_THAT(Sent(), IsEmpty());
}

TEST_F(RemoteBlobTest, EachBlockIsAskedForOnceAndAgainOnDemand) {
  const auto first = Wait(kBlock - 1, 2), second = Wait(0, 4 * kBlock);
  EXPECT_THAT(Sent(), ElementsAre("want 0+2", "want 2+2"));
  const auto beyond = Wait(9 * kBlock, kBlock + 100);
  EXPECT_THAT(Sent(), ElementsAre("want 9+1"));
  blob_->SendAgain();
  EXPECT_THAT(Sent(), ElementsAre("want 0+4", "want 9+1"));
  SayHave({0, 1, 2});
  EXPECT_EQ(*first, "there");
  EXPECT_EQ(*second, "");
  blob_->SendAgain();
  EXPECT_THAT(Sent(), ElementsAre("want 3+1", "want 9+1"));
  SayHave({3, 9}, 3);
  EXPECT_EQ(*second, "there");
  EXPECT_EQ(*beyond, "there");
  EXPECT_EQ(*Wait(0, 4 * kBlock), "there") << "at once";
  blob_->SendAgain();
  EXPECT_THAT(Sent(), IsEmpty());
}

TEST_F(RemoteBlobTest, WhatIsSaidOfBlocksThatThereAreNotIsHarmless) {
  const auto waiting = Wait(0, 1);
  Sent();
  FetchHave all{control::kMaxFetchBlock, {}};
  all.blocks.set();
  Say(all);
  Say(FetchHave{9, all.blocks});
  Say(FetchFailed{10, 2000, Unavailable("x")});
  Say(FetchChecked{control::kMaxFetchBlock});
  EXPECT_EQ(*waiting, "");
  Say(FetchDrop{5, 2000});
  EXPECT_THAT(Sent(), ElementsAre("dropped 5+2000"));
}

TEST_F(RemoteBlobTest, AFailureIsOfThoseWhoWaitForTheBlock) {
  SayHave({2});
  const auto hit = Wait(kBlock, 3 * kBlock), other = Wait(5 * kBlock, 1);
  const auto there_but_more = Wait(2 * kBlock, 4 * kBlock);
  Sent();
  Say(FetchFailed{2, 2, NotFound("no such blob")});
  EXPECT_EQ(*hit, "not found: block 3 did not come: no such blob");
  EXPECT_THAT(*there_but_more, HasSubstr("block 3"));
  EXPECT_EQ(*other, "");
  const auto again = Wait(3 * kBlock, 1);
  EXPECT_THAT(Sent(), ElementsAre("want 3+1")) << "a later read tries again";
  blob_->FailWaiting(Unavailable("nobody"));
  EXPECT_EQ(*again, "unavailable: nobody");
  EXPECT_EQ(*other, "unavailable: nobody");
}

TEST_F(RemoteBlobTest, ABlockThatIsSuspectedIsAwayUntilItWasChecked) {
  SayHave({0, 1, 2});
  blob_->Suspect(kBlock, 1);
  EXPECT_THAT(Sent(), ElementsAre("suspect 1"));
  blob_->Suspect(kBlock, 1);
  const auto waiting = Wait(0, 3 * kBlock);
  EXPECT_THAT(Sent(), IsEmpty()) << "it has been said";
  SayHave({1});
  EXPECT_EQ(*waiting, "") << "said before it knew";
  blob_->SendAgain();
  EXPECT_THAT(Sent(), ElementsAre("suspect 1"));
  Say(FetchChecked{1});
  EXPECT_EQ(*waiting, "there");
  blob_->Suspect(kBlock, 1);
  const auto failing = Wait(kBlock, 1);
  Say(FetchFailed{1, 1, Unavailable("registry away")});
  EXPECT_THAT(*failing, HasSubstr("registry away"));
}

TEST_F(RemoteBlobTest, ADropIsAnsweredWhenNoReadIsUnderWay) {
  SayHave({0, 1, 2, 3});
  std::shared_ptr<std::string> waiting;
  file_->before_read = [&] {
    file_->before_read = nullptr;
    Say(FetchDrop{1, 3});
    EXPECT_THAT(Sent(), IsEmpty());
    EXPECT_FALSE(reader_->IsThere(kBlock, 1)) << "no new read begins";
    EXPECT_TRUE(reader_->IsThere(0, 1));
    EXPECT_EQ(Read(0, 1), "a") << "of another block";
    waiting = Wait(2 * kBlock, 1);
    EXPECT_THAT(Sent(), IsEmpty()) << "asked for after it was dropped";
  };
  EXPECT_EQ(Read(2 * kBlock, 1), "c");
  EXPECT_THAT(Sent(), ElementsAre("dropped 1+3", "want 2+1"));
  SayHave({2});
  EXPECT_EQ(*waiting, "there");
  EXPECT_EQ(Read(2 * kBlock, 1), "c");
  EXPECT_THAT(Sent(), IsEmpty());
}

TEST_F(RemoteBlobTest, EachDropHasItsAnswer) {
  SayHave({0, 1});
  file_->before_read = [&] {
    file_->before_read = nullptr;
    for (size_t i = 0; i < 3; ++i) Say(FetchDrop{0, 1});
    Say(FetchDrop{1, 1});
    EXPECT_THAT(Sent(), ElementsAre("dropped 1+1"));
  };
  EXPECT_EQ(Read(0, 1), "a");
  EXPECT_THAT(Sent(), ElementsAre("dropped 0+1", "dropped 0+1", "dropped 0+1"));
}

TEST_F(RemoteBlobTest, WhatIsSaidToBeThereIsNotDroppedAnyMore) {
  SayHave({0, 1});
  file_->before_read = [&] {
    file_->before_read = nullptr;
    Say(FetchDrop{0, 2});
    const auto waiting = Wait(0, 2 * kBlock);
    SayHave({0});
    EXPECT_EQ(*waiting, "");
    EXPECT_THAT(Sent(), ElementsAre("dropped 0+2", "want 1+1")) << "to be let go of no more";
  };
  EXPECT_EQ(Read(0, 1), "a");
  EXPECT_THAT(Sent(), IsEmpty());
  EXPECT_EQ(Read(0, 1), "a");
}

TEST_F(RemoteBlobTest, ALocalFileHasEverything) {
  const auto waiting = Wait(0, kBlock);
  Sent();
  ASSERT_TRUE(blob_->UseLocal(std::make_shared<TestFile>('A')).ok());
  EXPECT_EQ(*waiting, "there");
  EXPECT_EQ(Read(4 * kBlock, 1), "E");
  blob_->Suspect(0, 1);
  blob_->SendAgain();
  EXPECT_THAT(Sent(), IsEmpty());
  Say(FetchDrop{0, 10});
  EXPECT_THAT(Sent(), ElementsAre("dropped 0+10"));
  EXPECT_TRUE(reader_->IsThere(0, kCovered));
  const std::string other = "other";
  EXPECT_TRUE(
      absl::IsInvalidArgument(blob_->UseLocal(std::make_shared<MemoryReader>(AsBytes(other)))));
}

TEST_F(RemoteBlobTest, AReadOfTheEarlierFileCountsAfterTheSwitch) {
  SayHave({0});
  file_->before_read = [&] {
    file_->before_read = nullptr;
    ASSERT_TRUE(blob_->UseLocal(std::make_shared<TestFile>('A')).ok());
    Say(FetchDrop{0, 1});
    EXPECT_THAT(Sent(), IsEmpty());
    EXPECT_EQ(Read(0, 1), "A");
  };
  EXPECT_EQ(Read(0, 1), "a");
  EXPECT_THAT(Sent(), ElementsAre("dropped 0+1"));
}

TEST_F(RemoteBlobTest, OfAnotherFileNothingIsKnown) {
  SayHave({0, 1});
  const auto waiting = Wait(2 * kBlock, 1);
  Sent();
  EXPECT_FALSE(blob_->UseFile({file_, {1, 1}}).value()) << "the same one";
  EXPECT_TRUE(reader_->IsThere(0, 1));
  EXPECT_TRUE(blob_->UseFile({std::make_shared<TestFile>('A'), {1, 2}}).value());
  EXPECT_FALSE(reader_->IsThere(0, 1));
  EXPECT_THAT(Sent(), ElementsAre("want 2+1"));
  SayHave({2});
  EXPECT_EQ(*waiting, "there");
  EXPECT_EQ(Read(2 * kBlock, 1), "C");
  EXPECT_TRUE(blob_->CheckBlocks(HeaderOf(kCovered, kBlock)).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(blob_->CheckBlocks(HeaderOf(kCovered, 2 * kBlock))));
  const std::string other = "other";
  EXPECT_TRUE(absl::IsInvalidArgument(
      blob_->UseFile({std::make_shared<MemoryReader>(AsBytes(other)), {1, 3}}).status()));
}

TEST_F(RemoteBlobTest, AFileThatWasRemovedCountsForWhoHadItOpen) {
  std::string name = "/tmp/kapsule-blob-XXXXXX";
  const UniqueFd fd(mkstemp(name.data()));
  ASSERT_TRUE(blob_->UseFile({file_, {1, 2}, fd.get()}).value());
  unlink(name.c_str());
  SayHave({0});
  EXPECT_EQ(Read(0, 1), "a") << "kapsule-fetch goes on with it";
  // What a successor, or a slow opening, brings along may be of an earlier kapsule-fetch.
  EXPECT_FALSE(blob_->UseFile({file_, {1, 3}, fd.get()}).value());
  const auto made = *RemoteBlob::Make(digest_, {file_, {1, 2}, fd.get()},
                                      HeaderOf(kCovered, kBlock), [](const FetchPacket&) {});
  const auto reader = RemoteBlob::ReaderOf(made);
  FetchHave have{0, {}};
  have.blocks.set(0);
  made->Handle({digest_, have});
  EXPECT_FALSE(reader->IsThere(0, 1));
  EXPECT_TRUE(made->UseFile({file_, {1, 4}}).value());
  made->Handle({digest_, have});
  EXPECT_TRUE(reader->IsThere(0, 1));
}

TEST_F(RemoteBlobTest, WhatAnotherFetcherSaysCountsWhenItsFileIsKnown) {
  SayHave({0, 3});
  blob_->Suspect(3 * kBlock, 1);
  const auto waiting = Wait(0, 2 * kBlock), checked = Wait(3 * kBlock, 1);
  blob_->AwaitFile();
  Sent();
  SayHave({1});
  Say(FetchChecked{3});
  EXPECT_EQ(*waiting + *checked, "") << "it may be another file's";
  EXPECT_EQ(Read(0, 1), "a") << "the file from before has it";
  EXPECT_FALSE(blob_->UseFile({file_, {1, 1}}).value());
  EXPECT_THAT(Sent(), ElementsAre("suspect 3", "want 1+1"));
  SayHave({1});
  Say(FetchChecked{3});
  EXPECT_EQ(*waiting, "there");
  EXPECT_EQ(*checked, "there");
}

TEST_F(RemoteBlobTest, ASuspectedBlockOfABlobThatIsNotOpenYetIsAskedForAgain) {
  SayHave({1});
  blob_->Suspect(kBlock, 1);
  const auto waiting = Wait(kBlock, 1);
  Sent();
  Say(FetchFailed{1, 1, absl::AbortedError("no such block is open")});
  EXPECT_EQ(*waiting, "");
  blob_->SendAgain();
  EXPECT_THAT(Sent(), ElementsAre("suspect 1"));
  Say(FetchChecked{1});
  EXPECT_EQ(*waiting, "there");
}

TEST_F(RemoteBlobTest, AReadWaitsForAFileThatDoesNotComeNoLongerThanThePatience) {
  blob_ = *RemoteBlob::Make(
      digest_, {file_, {1, 1}}, HeaderOf(kCovered, kBlock), [](const FetchPacket&) {},
      absl::Milliseconds(20));
  reader_ = RemoteBlob::ReaderOf(blob_);
  const auto waiting = Wait(0, 1);
  blob_->AwaitFile();
  absl::SleepFor(absl::Milliseconds(30));
  const auto later = Wait(kBlock, 1);
  SayHave({0, 1});
  EXPECT_THAT(*waiting, HasSubstr("in which file"));
  EXPECT_EQ(*later, "");
}

TEST_F(RemoteBlobTest, ADropOfAnEarlierFetcherIsNotAnsweredToTheNext) {
  SayHave({0});
  file_->before_read = [&] {
    file_->before_read = nullptr;
    Say(FetchDrop{0, 1});
    blob_->AwaitFile();
  };
  EXPECT_EQ(Read(0, 1), "a");
  EXPECT_THAT(Sent(), IsEmpty());
}

TEST_F(RemoteBlobTest, ALayerOfTooManyBlocksIsRefused) {
  EXPECT_EQ(
      RemoteBlob::Make(digest_, {file_, {}}, HeaderOf(uint64_t{1} << 43, 1 << 20), {}).status(),
      absl::OkStatus());
  EXPECT_TRUE(absl::IsUnimplemented(
      RemoteBlob::Make(digest_, {file_, {}}, HeaderOf(uint64_t{1} << 43, 1 << 19), {}).status()));
}

// As the threads of kapsule-fuse and kapsule-fetch do.
TEST(RemoteBlobThreadsTest, ReadersNeverSeeABlockThatWasDropped) {
  struct PunchedFile final : ReaderAt {
    uint64_t size() const override { return kSize; }
    absl::Status ReadAt(uint64_t offset, MutableByteSpan) const override {
      return there[offset / kBlock] ? absl::OkStatus() : DataLoss("a hole");
    }
    std::array<std::atomic<bool>, 10> there{};
  };
  const auto file = std::make_shared<PunchedFile>();
  absl::Mutex mu;
  std::vector<FetchPacket> inbox;
  const oci::Digest digest = oci::Digest::Of(AsBytes("blob"));
  const auto blob =
      *RemoteBlob::Make(digest, {file, {}}, HeaderOf(kCovered, kBlock), [&](FetchPacket packet) {
        absl::MutexLock lock(&mu);
        inbox.push_back(std::move(packet));
      });
  const auto reader = RemoteBlob::ReaderOf(blob);
  std::atomic<bool> stop = false;
  std::thread fetcher([&] {
    std::array<bool, 10> dropping{};
    for (uint64_t round = 0; !stop; ++round) {
      std::vector<FetchPacket> got;
      {
        absl::MutexLock lock(&mu);
        got.swap(inbox);
      }
      for (const FetchPacket& packet : got) {
        if (const auto* want = std::get_if<FetchWant>(&packet.body)) {
          FetchHave have{want->first, {}};
          for (uint64_t i = 0; i < want->count; ++i) {
            dropping[want->first + i] = false;
            file->there[want->first + i] = true;
            have.blocks.set(i);
          }
          blob->Handle({digest, have});
        } else if (const auto* dropped = std::get_if<FetchDropped>(&packet.body)) {
          if (std::exchange(dropping[dropped->first], false)) file->there[dropped->first] = false;
        }
      }
      dropping[round % 10] = true;
      blob->Handle({digest, FetchDrop{round % 10, 1}});
      std::this_thread::yield();
    }
    blob->UseLocal(file).IgnoreError();  // lets go of those who wait
  });
  std::vector<std::thread> readers;
  std::atomic<int> good = 0, bad = 0;
  for (uint64_t t = 0; t < 3; ++t)
    readers.emplace_back([&, t] {
      std::array<std::byte, 16> out;
      for (uint64_t i = 0; i < 20'000; ++i) {
        const uint64_t offset = (i * 7 + t) % 10 * kBlock;
        const absl::Status status = reader->ReadAt(offset, out);
        good += status.ok();
        bad += absl::IsDataLoss(status);
        if (absl::IsUnavailable(status)) {
          std::atomic<bool> there = false;
          reader->WhenThere(offset, 16, [&](const absl::Status&) { there = true; });
          while (!there) std::this_thread::yield();
        }
      }
    });
  for (std::thread& thread : readers) thread.join();
  stop = true;
  fetcher.join();
  EXPECT_EQ(bad, 0);
  EXPECT_GT(good, 0);
}

}  // namespace
}  // namespace kapsule::fuse
