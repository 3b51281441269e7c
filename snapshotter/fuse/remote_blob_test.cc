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
    return fmt::format("dropped {}+{} ({})", p->first, p->count, p->question);
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
  void SayHave(std::initializer_list<uint64_t> blocks, uint64_t first = 0,
               const control::FetchFile& file = {1, 1}) {
    FetchHave have{first, {}, file};
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
  FetchHave all{control::kMaxFetchBlock, {}, {1, 1}};
  all.blocks.set();
  Say(all);
  Say(FetchHave{9, all.blocks, {1, 1}});
  Say(FetchFailed{10, 2000, Unavailable("x")});
  Say(FetchChecked{control::kMaxFetchBlock, {1, 1}});
  EXPECT_EQ(*waiting, "");
  Say(FetchDrop{5, 2000, 9});
  EXPECT_THAT(Sent(), ElementsAre("dropped 5+2000 (9)"));
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
  Say(FetchChecked{1, {1, 1}});
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
    Say(FetchDrop{1, 3, 2});
    EXPECT_THAT(Sent(), IsEmpty());
    EXPECT_FALSE(reader_->IsThere(kBlock, 1)) << "no new read begins";
    EXPECT_TRUE(reader_->IsThere(0, 1));
    EXPECT_EQ(Read(0, 1), "a") << "of another block";
    waiting = Wait(2 * kBlock, 1);
    EXPECT_THAT(Sent(), IsEmpty()) << "asked for after it was dropped";
  };
  EXPECT_EQ(Read(2 * kBlock, 1), "c");
  EXPECT_THAT(Sent(), ElementsAre("dropped 1+3 (2)", "want 2+1"));
  SayHave({2});
  EXPECT_EQ(*waiting, "there");
  EXPECT_EQ(Read(2 * kBlock, 1), "c");
  EXPECT_THAT(Sent(), IsEmpty());
}

TEST_F(RemoteBlobTest, AnAnswerIsToTheLastDropOfTheSameBlocks) {
  SayHave({0, 1});
  file_->before_read = [&] {
    file_->before_read = nullptr;
    for (const uint64_t question : {3, 4, 6}) Say(FetchDrop{0, 1, question});
    Say(FetchDrop{1, 1, 7});
    EXPECT_THAT(Sent(), ElementsAre("dropped 1+1 (7)"));
  };
  EXPECT_EQ(Read(0, 1), "a");
  EXPECT_THAT(Sent(), ElementsAre("dropped 0+1 (6)"));
}

TEST_F(RemoteBlobTest, ADropIsNotAnsweredForOneBlockWhileAnotherIsRead) {
  SayHave({0, 1});
  file_->before_read = [&] {
    file_->before_read = nullptr;
    Say(FetchDrop{0, 2, 1});
    SayHave({0});
    EXPECT_THAT(Sent(), IsEmpty()) << "block 1 would be let go of";
    EXPECT_EQ(Read(0, 1), "a");
  };
  EXPECT_EQ(Read(kBlock, 1), "b");
  EXPECT_THAT(Sent(), ElementsAre("dropped 0+2 (1)"));
}

TEST_F(RemoteBlobTest, WhatIsThereAgainDelaysNoAnswer) {
  SayHave({0, 1});
  std::shared_ptr<std::string> waiting;
  file_->before_read = [&] {
    file_->before_read = nullptr;
    Say(FetchDrop{0, 2, 1});
    waiting = Wait(0, 2 * kBlock);
    EXPECT_THAT(Sent(), IsEmpty());
    SayHave({0});
    EXPECT_THAT(Sent(), ElementsAre("dropped 0+2 (1)", "want 1+1"));
  };
  EXPECT_EQ(Read(0, 1), "a");
  EXPECT_EQ(*waiting, "");
  EXPECT_THAT(Sent(), IsEmpty());
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
  Say(FetchDrop{0, 10, 1});
  EXPECT_THAT(Sent(), ElementsAre("dropped 0+10 (1)"));
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
    Say(FetchDrop{0, 1, 1});
    EXPECT_THAT(Sent(), IsEmpty());
    EXPECT_EQ(Read(0, 1), "A");
  };
  EXPECT_EQ(Read(0, 1), "a");
  EXPECT_THAT(Sent(), ElementsAre("dropped 0+1 (1)"));
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
  SayHave({2}, 0, {1, 2});
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
  SayHave({0}, 0, {1, 2});
  EXPECT_EQ(Read(0, 1), "a") << "kapsule-fetch goes on with it";
  // What a slow opening brings along may be of an earlier kapsule-fetch.
  EXPECT_FALSE(blob_->UseFile({file_, {1, 3}, fd.get()}).value());
}

TEST_F(RemoteBlobTest, WhatAFetcherSaysOfAnotherFileCountsWhenThatIsKnown) {
  SayHave({0, 3});
  blob_->Suspect(3 * kBlock, 1);
  const auto waiting = Wait(0, 2 * kBlock), checked = Wait(3 * kBlock, 1);
  Sent();
  for (const control::FetchFile& other : {control::FetchFile{1, 2}, control::FetchFile{2, 1}}) {
    SayHave({1, 2}, 0, other);
    Say(FetchChecked{3, other});
  }
  EXPECT_EQ(*waiting + *checked, "");
  EXPECT_FALSE(reader_->IsThere(2 * kBlock, 1));
  EXPECT_EQ(Read(0, 1), "a") << "the file from before has it";
  EXPECT_TRUE(blob_->UseFile({file_, {1, 2}}).value());
  EXPECT_THAT(Sent(), ElementsAre("want 0+2", "want 3+1"));
  SayHave({0, 1, 3}, 0, {1, 2});
  EXPECT_EQ(*waiting, "there");
  EXPECT_EQ(*checked, "there");
  SayHave({2});
  EXPECT_FALSE(reader_->IsThere(2 * kBlock, 1)) << "of the earlier file";
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
  Say(FetchChecked{1, {1, 1}});
  EXPECT_EQ(*waiting, "there");
}

TEST_F(RemoteBlobTest, AReadWaitsForAFileThatDoesNotComeNoLongerThanThePatience) {
  blob_ = *RemoteBlob::Make(
      digest_, {file_, {1, 1}}, HeaderOf(kCovered, kBlock), [](const FetchPacket&) {},
      absl::Seconds(1));
  reader_ = RemoteBlob::ReaderOf(blob_);
  const auto waiting = Wait(0, 1);
  absl::SleepFor(absl::Milliseconds(1100));
  const auto later = Wait(kBlock, 1);
  SayHave({0, 1}, 0, {1, 2});
  EXPECT_THAT(*waiting, HasSubstr("not handed over yet"));
  EXPECT_EQ(*later, "");
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
    std::array<uint64_t, 10> dropping{};  // the question with which it began, or 0
    for (uint64_t round = 1; !stop; ++round) {
      std::vector<FetchPacket> got;
      {
        absl::MutexLock lock(&mu);
        got.swap(inbox);
      }
      for (const FetchPacket& packet : got) {
        if (const auto* want = std::get_if<FetchWant>(&packet.body)) {
          FetchHave have{want->first, {}};
          for (uint64_t i = 0; i < want->count; ++i) {
            dropping[want->first + i] = 0;
            file->there[want->first + i] = true;
            have.blocks.set(i);
          }
          blob->Handle({digest, have});
        } else if (const auto* dropped = std::get_if<FetchDropped>(&packet.body)) {
          for (uint64_t i = dropped->first; i < dropped->first + dropped->count; ++i) {
            if (dropping[i] == 0 || dropping[i] > dropped->question) continue;
            dropping[i] = 0;
            file->there[i] = false;
          }
        }
      }
      const uint64_t first = round % 10, count = std::min<uint64_t>(1 + round % 3, 10 - first);
      for (uint64_t i = first; i < first + count; ++i)
        if (dropping[i] == 0) dropping[i] = round;
      blob->Handle({digest, FetchDrop{first, static_cast<uint32_t>(count), round}});
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
