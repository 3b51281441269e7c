// The real kapsule-fuse with a real mount, and layers that come from a registry.
#include <absl/time/clock.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "snapshotter/fuse/test_fetcher.h"

namespace kapsule::fuse {
namespace {

using ::testing::HasSubstr;
using testing::OpenView;
using testing::ReadAll;
using testing::Reader;
using testing::TestFetcher;
using testing::TestNode;
using testing::TestProcess;

constexpr size_t kMiB = 1 << 20;

class RemoteLayerTest : public ::testing::Test {
 protected:
  std::unique_ptr<TestProcess> StartAndServe(const std::vector<std::string>& flags = {}) {
    auto process = node_.Start(flags);
    const absl::Status served = process->Serve();
    EXPECT_TRUE(served.ok()) << served;
    return process;
  }
  // As kapsule-snapshotter does when kapsule-fetch has started.
  void UseFetcher(TestProcess& process) {
    const UniqueFd socket = fetcher_.Connect();
    EXPECT_TRUE(node_.HolderClient().Put(control::kHeldFetch, {socket.get()}).ok());
    v1::DataPlaneRequest request;
    request.mutable_use_fetcher();
    const absl::Status status = process.Call(request, {socket.get()}).status();
    EXPECT_TRUE(status.ok()) << status;
  }
  // And this, when it has opened the layer's blob in the next one.
  absl::Status UseFile(TestProcess& process, bool encrypted) {
    const UniqueFd blob = fetcher_.OpenFileOf(encrypted);
    v1::DataPlaneRequest request;
    request.mutable_use_file()->set_digest(TestNode::DigestOf(encrypted).hex());
    return process.Call(request, {blob.get()}).status();
  }
  absl::Status UseLocal(TestProcess& process, bool encrypted) {
    const UniqueFd blob = OpenFile(node_.BlobPath(encrypted), O_RDONLY).value();
    v1::DataPlaneRequest request;
    request.mutable_use_local()->set_digest(TestNode::DigestOf(encrypted).hex());
    return process.Call(request, {blob.get()}).status();
  }
  absl::Status OpenRemote(TestProcess& process, bool encrypted, uint32_t timeout_ms = 10'000) {
    return node_.OpenRemote(process, encrypted, fetcher_.OpenFileOf(encrypted), timeout_ms);
  }
  std::unique_ptr<TestProcess> StartWithRemote(bool encrypted,
                                               const std::vector<std::string>& flags = {}) {
    auto process = StartAndServe(flags);
    UseFetcher(*process);
    const absl::Status opened = OpenRemote(*process, encrypted);
    EXPECT_TRUE(opened.ok()) << opened;
    return process;
  }
  // A thread that reads all of the view, in which `got` is then.
  std::unique_ptr<Reader> ReadAllOf(const UniqueFd& view, std::string* got) {
    return std::make_unique<Reader>(node_, [&view, got] { *got = ReadAll(view); });
  }

  TestNode node_;
  TestFetcher fetcher_{node_};
};

TEST_F(RemoteLayerTest, ItIsReadAsItsBlocksCome) {
  for (const bool encrypted : {false, true}) {
    auto process = StartWithRemote(encrypted);
    const UniqueFd view = OpenView(node_, encrypted);
    EXPECT_TRUE(ReadAll(view) == node_.Expected(encrypted));
    EXPECT_TRUE(ReadAll(view, 64 << 10) == node_.Expected(encrypted)) << "what is there now";
    process->Kill();
  }
}

TEST_F(RemoteLayerTest, ARegistryThatNeverAnswersDelaysNobodyElse) {
  fetcher_.Behave(true, {.silent = true});
  auto process = StartAndServe({"--workers", "2", "--io-threads", "2"});
  UseFetcher(*process);
  // Its TOC is there, but not said to be.
  fetcher_.Behave(true, {});
  ASSERT_TRUE(OpenRemote(*process, true).ok());
  fetcher_.Behave(true, {.silent = true});
  ASSERT_TRUE(node_.Open(*process, false).ok());
  const UniqueFd far = OpenView(node_, true), near = OpenView(node_, false);
  const std::string expected = node_.Expected(true);
  std::atomic<int> good = 0;
  std::vector<std::unique_ptr<Reader>> readers;
  for (int i = 0; i < 24; ++i)
    readers.push_back(std::make_unique<Reader>(node_, [&, i] {
      const off_t at = i * 200'000 / 4096 * 4096;
      alignas(4096) static thread_local char page[4096];
      const bool same = pread(far.get(), page, 4096, at) == 4096 &&
                        expected.compare(static_cast<size_t>(at), 4096, page, 4096) == 0;
      good += same;
    }));
  ASSERT_TRUE(fetcher_.AwaitWants(true, 5));
  EXPECT_TRUE(ReadAll(near) == node_.Expected(false));
  EXPECT_TRUE(ReadAll(near, 4096) == node_.Expected(false));
  EXPECT_LE(good, 1) << "but for the first page, of the metadata";
  fetcher_.Behave(true, {});
  for (const auto& reader : readers) reader->Join();
  EXPECT_EQ(good, 24);
}

TEST_F(RemoteLayerTest, OpeningWaitsNoLongerThanAsked) {
  fetcher_.Behave(true, {.silent = true});
  auto process = StartAndServe();
  UseFetcher(*process);
  EXPECT_EQ(OpenRemote(*process, true, 300).code(), absl::StatusCode::kDeadlineExceeded);
  fetcher_.Behave(true, {});
  EXPECT_TRUE(OpenRemote(*process, true).ok());
}

TEST_F(RemoteLayerTest, WhatCannotBeGotIsAnErrorThatNamesLayerBlockAndCause) {
  auto process = StartWithRemote(true);
  fetcher_.Behave(true, {.failure = PermissionDenied("registry.example says no")});
  const UniqueFd view = OpenView(node_, true);
  for (int i = 0; i < 2; ++i) EXPECT_LT(ReadAll(view).size(), node_.Expected(true).size());
  const std::string log = process->Log();
  const std::string line = "block 0 did not come: registry.example says no";
  EXPECT_THAT(log, HasSubstr(TestNode::DigestOf(true).text()));
  const size_t at = log.find(line);
  ASSERT_NE(at, log.npos) << log;
  EXPECT_EQ(log.find(line, at + 1), log.npos) << "once";
  fetcher_.Behave(true, {});
  EXPECT_TRUE(ReadAll(view) == node_.Expected(true)) << "it is well again";
}

TEST_F(RemoteLayerTest, ASuccessorWaitsForWhatItsPredecessorDid) {
  auto process = StartWithRemote(true);
  fetcher_.Behave(true, {.silent = true});
  const UniqueFd view = OpenView(node_, true);
  std::string got;
  const auto reader = ReadAllOf(view, &got);
  for (int generation = 0; generation < 3; ++generation) {
    ASSERT_TRUE(fetcher_.AwaitWants(true, 1));
    process->Kill();
    process = StartAndServe();
  }
  fetcher_.Behave(true, {});
  reader->Join();
  EXPECT_TRUE(got == node_.Expected(true));
}

TEST_F(RemoteLayerTest, AFetcherThatWasRestartedIsAskedAgain) {
  auto process = StartWithRemote(true);
  fetcher_.Behave(true, {.silent = true});
  const UniqueFd view = OpenView(node_, true);
  std::string got;
  const auto reader = ReadAllOf(view, &got);
  ASSERT_TRUE(fetcher_.AwaitWants(true, 1));
  UseFetcher(*process);
  ASSERT_TRUE(fetcher_.AwaitWants(true, 1));
  fetcher_.Behave(true, {});
  EXPECT_TRUE(UseFile(*process, true).ok());
  reader->Join();
  EXPECT_TRUE(got == node_.Expected(true));
}

TEST_F(RemoteLayerTest, WithoutFetcherReadsFailAfterTheGraceAndGoOnWithTheNextOne) {
  auto process = StartWithRemote(true, {"--fetch-grace-ms", "300"});
  const UniqueFd view = OpenView(node_, true);
  { const UniqueFd unused = fetcher_.Connect(); }  // the one that is in use is closed
  EXPECT_LT(ReadAll(view).size(), node_.Expected(true).size());
  EXPECT_THAT(process->Log(), HasSubstr("kapsule-fetch, which gets it, is not running"));
  UseFetcher(*process);
  EXPECT_TRUE(UseFile(*process, true).ok());
  EXPECT_TRUE(ReadAll(view) == node_.Expected(true));
}

TEST_F(RemoteLayerTest, ABlockThatIsBadInTheFileIsCheckedAndReadOnceMore) {
  auto process = StartWithRemote(true);
  const UniqueFd view = OpenView(node_, true);
  ASSERT_TRUE(ReadAll(view) == node_.Expected(true));
  // A process that remembers nothing of it.
  process->Kill();
  process = StartAndServe();
  fetcher_.Damage(true, 2);
  EXPECT_TRUE(ReadAll(view) == node_.Expected(true));
  EXPECT_GE(fetcher_.suspected(true), 1u);
  // What was said to be good and is not is the layer's own fault.
  process->Kill();
  process = StartAndServe();
  fetcher_.Behave(true, {.lies = true});
  fetcher_.Damage(true, 2);
  const size_t before = fetcher_.suspected(true);
  EXPECT_LT(ReadAll(view).size(), node_.Expected(true).size());
  EXPECT_GE(fetcher_.suspected(true), before + 1);
  EXPECT_LE(fetcher_.suspected(true), before + 4) << "one read does it once";
  EXPECT_THAT(process->Log(), HasSubstr("chunk"));
}

TEST_F(RemoteLayerTest, WhatWasDroppedIsFetchedAgain) {
  auto process = StartWithRemote(false);
  const UniqueFd view = OpenView(node_, false);
  for (int round = 0; round < 3; ++round) {
    EXPECT_TRUE(ReadAll(view) == node_.Expected(false));
    fetcher_.Drop(false);
    ASSERT_TRUE(fetcher_.AwaitDropped(false));
  }
  EXPECT_TRUE(ReadAll(view, 4096) == node_.Expected(false));
}

TEST_F(RemoteLayerTest, DropsWhileItIsReadTakeNoByteFromAReader) {
  // A plain layer: holes would be taken for zeros.
  auto process = StartWithRemote(false);
  const std::string expected = node_.Expected(false);
  std::atomic<bool> stop = false;
  std::vector<std::unique_ptr<Reader>> readers;
  for (const size_t piece : {size_t{4096}, size_t{64} << 10, kMiB})
    readers.push_back(std::make_unique<Reader>(node_, [&, piece] {
      const UniqueFd view = OpenView(node_, false);
      while (!stop) {
        if (ReadAll(view, piece) == expected) continue;
        ADD_FAILURE() << "wrong bytes or an error in pieces of " << piece;
        return;
      }
    }));
  for (int i = 0; i < 100; ++i) {
    fetcher_.Drop(false);
    absl::SleepFor(absl::Milliseconds(5));
  }
  stop = true;
  for (const auto& reader : readers) reader->Join();
}

TEST_F(RemoteLayerTest, ABlobThatIsCompleteElsewhereIsReadThereAlsoByASuccessor) {
  auto process = StartWithRemote(true);
  fetcher_.Behave(true, {.silent = true});
  const UniqueFd view = OpenView(node_, true);
  std::string got;
  const auto reader = ReadAllOf(view, &got);
  ASSERT_TRUE(fetcher_.AwaitWants(true, 1));
  const absl::Status used = UseLocal(*process, true);
  EXPECT_TRUE(used.ok()) << used;
  reader->Join();
  EXPECT_TRUE(got == node_.Expected(true));
  process->Kill();
  process = StartAndServe();
  EXPECT_TRUE(ReadAll(view) == node_.Expected(true));
  EXPECT_TRUE(UseLocal(*process, true).ok()) << "nothing to do";
  EXPECT_EQ(UseLocal(*process, false).code(), absl::StatusCode::kNotFound);
}

TEST_F(RemoteLayerTest, AnotherFileOfTheBlobTakesThePlaceOfTheFirstAlsoForASuccessor) {
  auto process = StartWithRemote(false);
  const UniqueFd view = OpenView(node_, false);
  ASSERT_TRUE(ReadAll(view) == node_.Expected(false));
  fetcher_.BeginAnew(false);
  ASSERT_TRUE(OpenRemote(*process, false).ok());
  fetcher_.Behave(false, {.silent = true});
  std::string got;
  const auto reader = ReadAllOf(view, &got);
  ASSERT_TRUE(fetcher_.AwaitWants(false, 1)) << "nothing is known of it";
  process->Kill();
  process = StartAndServe();
  fetcher_.Behave(false, {});
  reader->Join();
  EXPECT_TRUE(got == node_.Expected(false));
}

TEST_F(RemoteLayerTest, AReaderWaitsForTheFileOfAFetcherThatLostItsOwnAndSeesNoHole) {
  // A plain layer: holes would be taken for zeros.
  auto process = StartWithRemote(false);
  fetcher_.Behave(false, {.silent = true});
  const UniqueFd view = OpenView(node_, false);
  std::string got;
  const auto reader = ReadAllOf(view, &got);
  ASSERT_TRUE(fetcher_.AwaitWants(false, 1));
  fetcher_.BeginAnew(false, /*keep=*/true);
  UseFetcher(*process);
  fetcher_.Behave(false, {});
  absl::SleepFor(absl::Milliseconds(200));  // it says what its new file has
  EXPECT_TRUE(UseFile(*process, false).ok());
  reader->Join();
  EXPECT_TRUE(got == node_.Expected(false));
  process->Kill();
  process = StartAndServe();
  EXPECT_TRUE(ReadAll(view) == node_.Expected(false)) << "the successor has the new one";
}

TEST_F(RemoteLayerTest, OnlyALayerThatIsOpenAsRemoteGetsAnotherFile) {
  fetcher_.Behave(true, {.silent = true});
  auto process = StartAndServe();
  UseFetcher(*process);
  EXPECT_EQ(UseFile(*process, true).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(OpenRemote(*process, true, 300).code(), absl::StatusCode::kDeadlineExceeded);
  fetcher_.Behave(true, {});
  ASSERT_TRUE(OpenRemote(*process, true).ok());
  EXPECT_TRUE(UseFile(*process, true).ok());
  ASSERT_TRUE(node_.Open(*process, false).ok());
  EXPECT_TRUE(UseFile(*process, false).ok()) << "nothing to do";
  const UniqueFd view = OpenView(node_, false);
  EXPECT_TRUE(ReadAll(view) == node_.Expected(false));
}

TEST_F(RemoteLayerTest, ARecordThatContradictsTheRequestIsRefused) {
  auto process = StartAndServe();
  v1::DataPlaneRequest request;
  request.mutable_use_fetcher();
  const UniqueFd file = fetcher_.OpenFileOf(true);
  EXPECT_EQ(process->Call(request, {file.get()}).status().code(),
            absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(node_.Open(*process, true).ok());
  const UniqueFd record =
      std::move((*node_.HolderClient().Get("view/" + TestNode::DigestOf(true).hex()))[1]);
  request.mutable_open()->set_digest(TestNode::DigestOf(false).hex());
  request.mutable_open()->set_size(node_.LayerOf(false).bytes.size());
  request.mutable_open()->set_timeout_ms(1000);
  request.mutable_open()->set_remote(true);
  EXPECT_EQ(process->Call(request, {file.get(), record.get()}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kapsule::fuse
