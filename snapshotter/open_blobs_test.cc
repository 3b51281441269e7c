#include "snapshotter/open_blobs.h"

#include <absl/time/clock.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <algorithm>
#include <set>
#include <thread>

namespace kapsule::snapshotter {
namespace {

using ::testing::UnorderedElementsAre;

RemoteBlob BlobOf(const std::string& name) {
  RemoteBlob blob;
  blob.digest = oci::Digest::Of(AsBytes(name));
  blob.size = 1000;
  blob.images = {"registry.example/" + name};
  return blob;
}

// kapsule-fetch, with registries that may hang: what is asked of those is answered when
// half of its time is over, by as many threads as it takes.
class FakeFetch {
 public:
  FakeFetch() : pair_(*control::MakeSocketPair()), channel(std::move(pair_.ours), [] {}) {
    thread_ = std::thread([this] { Run(); });
  }
  ~FakeFetch() {
    shutdown(pair_.theirs.get(), SHUT_RDWR);
    thread_.join();
    for (std::thread& opener : openers_) opener.join();
  }
  void Hang(const std::string& name) {
    const absl::MutexLock lock(&mu_);
    hanging_.insert(oci::Digest::Of(AsBytes(name)).hex());
  }
  void HangNoMore() {
    const absl::MutexLock lock(&mu_);
    hanging_.clear();
  }
  size_t most_at_once() const {
    const absl::MutexLock lock(&mu_);
    return most_;
  }
  void CountAnew() {
    const absl::MutexLock lock(&mu_);
    most_ = 0;
  }

 private:
  void Run() {
    for (;;) {
      absl::StatusOr<control::ReceivedFetchRequest> request =
          control::ReceiveFetchRequest(pair_.theirs.get());
      if (!request.ok()) return;
      openers_.emplace_back([this, message = std::move(request->message)] { Answer(message); });
    }
  }
  void Answer(const v1::FetchRequest& message) {
    bool hangs;
    {
      const absl::MutexLock lock(&mu_);
      hangs = message.has_open() && hanging_.contains(message.open().digest());
      most_ = std::max(most_, ++opening_);
    }
    if (hangs) absl::SleepFor(absl::Milliseconds(message.open().timeout_ms() / 2));
    {
      const absl::MutexLock lock(&mu_);
      --opening_;
    }
    const absl::Status status = hangs ? Unavailable("no registry") : absl::OkStatus();
    const UniqueFd file = OpenFile("/dev/null", O_RDONLY).value();
    std::vector<int> fds;
    if (!hangs && message.has_open()) fds.push_back(file.get());
    control::SendFetchReply(pair_.theirs.get(), control::MakeFetchReply(message.id(), status), fds)
        .IgnoreError();
  }

  control::SocketPair pair_;
  mutable absl::Mutex mu_;
  std::set<std::string> hanging_ ABSL_GUARDED_BY(mu_);
  size_t opening_ ABSL_GUARDED_BY(mu_) = 0, most_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::thread> openers_;  // of thread_
  std::thread thread_;

 public:
  FetchChannel channel;
};

class OpenBlobsTest : public ::testing::Test {
 protected:
  OpenBlobsTest()
      : blobs_({.credentials = [](const std::string&) { return std::nullopt; },
                .use_file =
                    [this](const oci::Digest& digest, const UniqueFd& file) {
                      EXPECT_TRUE(file.valid());
                      const absl::MutexLock lock(&mu_);
                      if (told_.ok()) files_.push_back(digest);
                      return told_;
                    }},
               [this](const oci::Digest& digest) {
                 const absl::MutexLock lock(&mu_);
                 closed_.push_back(digest);
               }) {}
  void Reopen() {
    blobs_.Reopen(fetch_.channel, [] { return true; });
  }
  void Tell(const absl::Status& status) {
    const absl::MutexLock lock(&mu_);
    told_ = status;
  }
  std::vector<oci::Digest> TakeFiles() {
    const absl::MutexLock lock(&mu_);
    return std::exchange(files_, {});
  }

  FakeFetch fetch_;
  OpenBlobs blobs_;
  absl::Mutex mu_;
  absl::Status told_ ABSL_GUARDED_BY(mu_);
  std::vector<oci::Digest> files_ ABSL_GUARDED_BY(mu_), closed_ ABSL_GUARDED_BY(mu_);
};

TEST_F(OpenBlobsTest, TheFileOfEachBlobThatIsOpenedAgainGoesToKapsuleFuse) {
  const RemoteBlob a = BlobOf("a"), b = BlobOf("b");
  blobs_.Add(a);
  blobs_.Add(b);
  EXPECT_FALSE(blobs_.AnyDoubted());
  Reopen();
  EXPECT_THAT(TakeFiles(), UnorderedElementsAre());
  blobs_.DoubtAll();
  Reopen();
  EXPECT_THAT(TakeFiles(), UnorderedElementsAre(a.digest, b.digest));
  EXPECT_FALSE(blobs_.AnyDoubted());
  blobs_.Doubt(b.digest);
  blobs_.Doubt(BlobOf("unknown").digest);
  Reopen();
  EXPECT_THAT(TakeFiles(), UnorderedElementsAre(b.digest));
}

TEST_F(OpenBlobsTest, AFileThatKapsuleFuseDoesNotTakeIsGivenAgain) {
  blobs_.Add(BlobOf("a"));
  blobs_.DoubtAll();
  for (const absl::Status& refusal : {NotFound("not open, yet"), Unavailable("no key, yet")}) {
    Tell(refusal);
    Reopen();
    EXPECT_TRUE(blobs_.AnyDoubted());
  }
  Tell(absl::OkStatus());
  Reopen();
  EXPECT_FALSE(blobs_.AnyDoubted());
}

TEST_F(OpenBlobsTest, WhatIsLocalDoesNotWaitForRegistriesThatHang) {
  std::vector<oci::Digest> local;
  for (int i = 0; i < 60; ++i) {
    const std::string name = "blob" + std::to_string(i);
    blobs_.Add(BlobOf(name));
    if (i % 3 == 0) {
      local.push_back(BlobOf(name).digest);
    } else {
      fetch_.Hang(name);
    }
  }
  const auto all_local = [&] {
    const absl::MutexLock lock(&mu_);
    return files_.size() == local.size();
  };
  absl::Duration local_took = absl::InfiniteDuration(), all_took = local_took;
  // Again where the machine was too slow for the first patience: what is given up after it
  // may still be under way here.
  const auto too_slow = [&] {
    return local_took >= absl::Seconds(3) || fetch_.most_at_once() > OpenBlobs::kAtOnce;
  };
  for (int i = 0; i < 4 && too_slow(); ++i) {
    TakeFiles();
    fetch_.CountAnew();
    blobs_.DoubtAll();
    const absl::Time begin = absl::Now();
    std::thread reopening([&] { Reopen(); });
    while (!all_local() && absl::Now() - begin < absl::Seconds(20))
      absl::SleepFor(absl::Milliseconds(10));
    local_took = absl::Now() - begin;
    reopening.join();
    all_took = absl::Now() - begin;
  }
  EXPECT_LT(local_took, absl::Seconds(3));
  // One after the other the 40 that hang would take 46 s.
  EXPECT_LT(all_took, absl::Seconds(25));
  EXPECT_LE(fetch_.most_at_once(), OpenBlobs::kAtOnce);
  EXPECT_GT(fetch_.most_at_once(), OpenBlobs::kAtOnce / 2);
  EXPECT_THAT(TakeFiles(), ::testing::UnorderedElementsAreArray(local));
  EXPECT_TRUE(blobs_.AnyDoubted());
  fetch_.HangNoMore();
  Reopen();
  EXPECT_FALSE(blobs_.AnyDoubted());
  EXPECT_EQ(TakeFiles().size(), 40u);
}

TEST_F(OpenBlobsTest, ItStopsWhereSomethingElseIsDue) {
  for (const char* name : {"a", "b", "c"}) {
    blobs_.Add(BlobOf(name));
    fetch_.Hang(name);
  }
  blobs_.DoubtAll();
  blobs_.Reopen(fetch_.channel, [] { return false; });
  EXPECT_EQ(fetch_.most_at_once(), 0u) << "nothing was asked for";
  EXPECT_TRUE(blobs_.AnyDoubted());
  fetch_.channel.Shutdown();
  const absl::Time begin = absl::Now();
  Reopen();
  EXPECT_LT(absl::Now() - begin, OpenBlobs::kPatience) << "the process has ended";
  EXPECT_TRUE(blobs_.AnyDoubted()) << "the next one is to open them";
}

TEST_F(OpenBlobsTest, ABlobThatIsClosedMeanwhileIsToBeClosedThereToo) {
  const RemoteBlob blob = BlobOf("a");
  blobs_.Add(blob);
  fetch_.Hang("a");
  blobs_.DoubtAll();
  std::thread closing([&] {
    while (fetch_.most_at_once() == 0) absl::SleepFor(absl::Milliseconds(1));
    blobs_.Remove(blob.digest);
  });
  Reopen();
  closing.join();
  EXPECT_FALSE(blobs_.AnyDoubted());
  const absl::MutexLock lock(&mu_);
  EXPECT_EQ(closed_, std::vector<oci::Digest>{blob.digest});
}

TEST_F(OpenBlobsTest, ImagesOfEarlierOpeningsAreKept) {
  RemoteBlob blob = BlobOf("a");
  blobs_.Add(blob);
  blob.images = {"other.example/a", "registry.example/a"};
  EXPECT_EQ(blobs_.WithKnownImages(blob).images,
            (std::vector<std::string>{"registry.example/a", "other.example/a"}));
  blobs_.Remove(blob.digest);
  EXPECT_EQ(blobs_.WithKnownImages(blob).images, blob.images);
}

}  // namespace
}  // namespace kapsule::snapshotter
