// The real kapsule-fuse with a real mount, killed and succeeded.
#include <absl/time/clock.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "core/base/unix_socket.h"
#include "core/keyprovider/wire.h"
#include "snapshotter/fuse/request_memory.h"
#include "snapshotter/fuse/test_node.h"

namespace kapsule::fuse {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;
using ::testing::Not;
using testing::OpenView;
using testing::ReadAll;
using testing::Reader;
using testing::TestNode;
using testing::TestProcess;

std::string ViewName(bool encrypted) { return "view/" + TestNode::DigestOf(encrypted).hex(); }

class TakeOverTest : public ::testing::Test {
 protected:
  std::unique_ptr<TestProcess> StartAndServe(const std::vector<std::string>& flags = {}) {
    auto process = node_.Start(flags);
    const absl::Status served = process->Serve();
    EXPECT_TRUE(served.ok()) << served;
    return process;
  }
  // The request memory of the process that serves.
  std::unique_ptr<RequestMemory> Memory() {
    return RequestMemory::Adopt(std::move(node_.HolderClient().Get("requests")->front()), 1)
        .value();
  }
  // Until a read waits, as for its key; false after a while.
  bool AwaitParkedRead() {
    const auto memory = Memory();
    for (int i = 0; i < 1500 && memory->ParkedReads().empty(); ++i)
      absl::SleepFor(absl::Milliseconds(20));
    return !memory->ParkedReads().empty();
  }
  // The log of a process that has taken over and read: it says so after its first reply.
  static std::string LogOfSuccessor(const TestProcess& process) {
    for (int i = 0; i < 3000 && process.Log().find("took over: ") == std::string::npos; ++i)
      absl::SleepFor(absl::Milliseconds(10));
    return process.Log();
  }

  TestNode node_;
};

TEST_F(TakeOverTest, ASuccessorServesWhatWasOpen) {
  auto process = StartAndServe();
  for (const bool encrypted : {false, true}) {
    const absl::Status opened = node_.Open(*process, encrypted);
    ASSERT_TRUE(opened.ok()) << opened;
  }
  EXPECT_THAT(node_.HeldNames(), IsSupersetOf({std::string("fuse"), std::string("requests"),
                                               ViewName(false), ViewName(true)}));
  const UniqueFd plain = OpenView(node_, false), encrypted = OpenView(node_, true);
  EXPECT_TRUE(ReadAll(plain) == node_.Expected(false));
  EXPECT_TRUE(ReadAll(encrypted) == node_.Expected(true));
  for (int generation = 0; generation < 3; ++generation) {
    process->Kill();
    process = StartAndServe();
    EXPECT_TRUE(ReadAll(plain, 64 << 10) == node_.Expected(false));
    EXPECT_TRUE(ReadAll(encrypted) == node_.Expected(true));
    EXPECT_THAT(LogOfSuccessor(*process), HasSubstr("took over: 2 views"));
  }
  // Opened again by name, and closed: dropped when nobody has it open.
  EXPECT_TRUE(node_.Open(*process, true).ok());
  EXPECT_TRUE(ReadAll(OpenView(node_, true)) == node_.Expected(true));
  ASSERT_TRUE(node_.Close(*process, true).ok());
  EXPECT_THAT(node_.HeldNames(), ::testing::Contains(ViewName(true)));
  EXPECT_TRUE(ReadAll(encrypted) == node_.Expected(true));
}

// Readers of both views that compare everything, while processes are killed.
TEST_F(TakeOverTest, ReadersNoticeNothing) {
  auto process = StartAndServe();
  std::atomic<bool> stop = false;
  std::atomic<int> rounds = 0;
  std::vector<std::unique_ptr<Reader>> readers;
  for (const bool encrypted : {false, true}) {
    ASSERT_TRUE(node_.Open(*process, encrypted).ok());
    const std::string expected = node_.Expected(encrypted);
    for (const size_t piece : {size_t{4096}, size_t{1} << 20})
      readers.push_back(
          std::make_unique<Reader>(node_, [this, encrypted, expected, piece, &stop, &rounds] {
            while (!stop) {
              // Opened and closed each time: handles are counted while it is killed.
              if (ReadAll(OpenView(node_, encrypted), piece) != expected) {
                ADD_FAILURE() << "wrong bytes or an error in pieces of " << piece;
                return;
              }
              ++rounds;
            }
          }));
  }
  size_t again = 0;
  // More often where the machine is so slow that they have hardly read.
  for (int kills = 0; kills < 25 || (kills < 250 && (rounds <= 10 || again <= 5)); ++kills) {
    absl::SleepFor(absl::Milliseconds(20 + 13 * (kills % 7)));
    process->Kill();
    process = StartAndServe();
    absl::SleepFor(absl::Milliseconds(30));
    const std::string log = LogOfSuccessor(*process);
    const size_t at = log.find("2 views, ");
    ASSERT_NE(at, log.npos) << log;
    again += std::stoul(log.substr(at + 9));
  }
  stop = true;
  for (const auto& reader : readers) reader->Join();
  EXPECT_GT(rounds, 10);
  EXPECT_GT(again, 5u) << "no request was ever in flight";
  // The counts are exact: nothing is open, so closing forgets at once.
  const auto memory = Memory();
  uint64_t handles = 1;
  for (int i = 0; i < 1500 && handles > 0; ++i) {  // RELEASE is asynchronous
    absl::SleepFor(absl::Milliseconds(20));
    handles = 0;
    for (const SharedView& view : memory->views()) handles += view.handles;
  }
  EXPECT_EQ(handles, 0u);
  for (const bool encrypted : {false, true}) EXPECT_TRUE(node_.Close(*process, encrypted).ok());
  for (int i = 0; i < 1500 && node_.HeldNames().size() > 2; ++i)
    absl::SleepFor(absl::Milliseconds(20));
  EXPECT_THAT(node_.HeldNames(), ElementsAre("fuse", "requests"));
}

TEST_F(TakeOverTest, AViewThatNobodyHasAnyMoreIsForgottenByTheSuccessor) {
  auto process = StartAndServe();
  ASSERT_TRUE(node_.Open(*process, false).ok());
  ASSERT_TRUE(node_.Open(*process, true).ok());
  process->Kill();
  // As if it had been killed between two stores of Close().
  const auto memory = Memory();
  for (SharedView& view : memory->views())
    if (view.digest == TestNode::DigestOf(true).raw()) view.listed = 0;
  process = StartAndServe();
  EXPECT_THAT(node_.HeldNames(), ElementsAre("fuse", "requests", ViewName(false)));
  EXPECT_FALSE(std::filesystem::exists(node_.ViewPath(true)));
  EXPECT_TRUE(node_.Open(*process, true).ok());
}

TEST_F(TakeOverTest, ReadsWaitForAKeyProviderThatIsDown) {
  auto process = StartAndServe();
  for (const bool encrypted : {false, true}) ASSERT_TRUE(node_.Open(*process, encrypted).ok());
  const UniqueFd plain = OpenView(node_, false), encrypted = OpenView(node_, true);
  node_.StopKeys();
  process->Kill();
  process = StartAndServe();
  std::atomic<bool> done = false;
  Reader reader(node_, [&] {
    EXPECT_TRUE(ReadAll(encrypted) == node_.Expected(true));
    done = true;
  });
  EXPECT_TRUE(ReadAll(plain) == node_.Expected(false)) << "other views go on";
  ASSERT_TRUE(AwaitParkedRead());
  absl::SleepFor(absl::Milliseconds(300));
  EXPECT_FALSE(done);
  // What waits is handed on.
  process->Kill();
  process = StartAndServe();
  absl::SleepFor(absl::Milliseconds(200));
  EXPECT_FALSE(done);
  EXPECT_THAT(process->Log(), Not(HasSubstr("first reply after")));
  node_.StartKeys();
  reader.Join();
  EXPECT_THAT(LogOfSuccessor(*process), HasSubstr("2 views, 1 requests again"));
}

TEST_F(TakeOverTest, ReadsFailWhenTheKeyDoesNotComeInTime) {
  auto process = StartAndServe();
  ASSERT_TRUE(node_.Open(*process, true).ok());
  const UniqueFd view = OpenView(node_, true);
  node_.StopKeys();
  process->Kill();
  const absl::Time begin = absl::Now();
  process = StartAndServe({"--key-grace-ms", "300"});
  const std::string head = ReadAll(view);
  EXPECT_LT(head.size(), node_.Expected(true).size());
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(200));
  ReadAll(view);
  EXPECT_LT(absl::Now() - begin, absl::Seconds(30));  // half of what it is without the flag
  const std::string log = process->Log();
  const size_t at = log.find("its key did not come back");
  ASSERT_NE(at, log.npos) << log;
  EXPECT_EQ(log.find("its key did not come back", at + 1), log.npos) << "said once";
  // It comes at last.
  node_.StartKeys();
  for (int i = 0; i < 600 && ReadAll(view).size() < node_.Expected(true).size(); ++i)
    absl::SleepFor(absl::Milliseconds(50));
  EXPECT_TRUE(ReadAll(view) == node_.Expected(true));
}

TEST_F(TakeOverTest, AfterANoReadsFailUntilTheKeyProviderIsAskedAgain) {
  auto process = StartAndServe();
  ASSERT_TRUE(node_.Open(*process, true).ok());
  const UniqueFd view = OpenView(node_, true);
  process->Kill();
  node_.keys().Refuse(PermissionDenied("not for this node"));
  const int before = node_.keys().requests();
  const absl::Time begin = absl::Now();
  process = StartAndServe();
  EXPECT_LT(ReadAll(view).size(), node_.Expected(true).size());
  absl::SleepFor(absl::Milliseconds(300));
  const int asked = node_.keys().requests() - before;
  EXPECT_GE(asked, 1);
  EXPECT_LE(asked, 1 + (absl::Now() - begin) / absl::Seconds(2)) << "not before 2 s have passed";
  EXPECT_THAT(process->Log(), HasSubstr("not for this node"));
  EXPECT_EQ(node_.Open(*process, true).code(), absl::StatusCode::kPermissionDenied);
  node_.StopKeys();
  node_.StartKeys();
  for (int i = 0; i < 600 && ReadAll(view).size() < node_.Expected(true).size(); ++i)
    absl::SleepFor(absl::Milliseconds(50));
  EXPECT_TRUE(ReadAll(view) == node_.Expected(true)) << "nobody had to open it";
}

TEST_F(TakeOverTest, AnOpeningBringsTheKeyOfTheSameLayerAlone) {
  auto process = StartAndServe();
  ASSERT_TRUE(node_.Open(*process, true).ok());
  const UniqueFd view = OpenView(node_, true);
  process->Kill();
  node_.keys().Refuse(PermissionDenied("not for this node"));
  process = StartAndServe();
  EXPECT_LT(ReadAll(view).size(), node_.Expected(true).size());
  node_.StopKeys();
  node_.StartKeys();
  const absl::Status opened = node_.Open(*process, true);
  EXPECT_TRUE(opened.ok()) << opened;
  EXPECT_TRUE(ReadAll(view) == node_.Expected(true)) << "at once";

  // As if it had been made from another layer.
  process->Kill();
  const auto held = node_.HolderClient().Get(ViewName(true));
  ASSERT_TRUE(held.ok()) << held.status();
  oci::IndexRef other;
  other.length = 4096;
  const UniqueFd annotations =
      SealedMemfd("annotations", AsBytes(keyprovider::AnnotationsToJson(
                                     {{std::string(oci::kIndexAnnotation), other.ToJson()}})))
          .value();
  ASSERT_TRUE(node_.HolderClient()
                  .Put(ViewName(true), {(*held)[0].get(), annotations.get(), (*held)[2].get()})
                  .ok());
  process = StartAndServe();
  EXPECT_LT(ReadAll(view).size(), node_.Expected(true).size());
  EXPECT_EQ(node_.Open(*process, true).code(), absl::StatusCode::kPermissionDenied);
}

TEST_F(TakeOverTest, APreparedProcessServesWhatTheHolderHasThen) {
  auto process = StartAndServe();
  for (const bool encrypted : {false, true}) ASSERT_TRUE(node_.Open(*process, encrypted).ok());
  const UniqueFd plain = OpenView(node_, false);
  auto next = node_.Start();
  v1::DataPlaneRequest prepare;
  prepare.mutable_prepare()->set_timeout_ms(10'000);
  const auto reply = next->Call(prepare);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->views(), 2u);
  EXPECT_EQ(reply->views_without_key(), 0u);
  EXPECT_FALSE(next->Call(prepare).ok()) << "once only";
  // The first one goes on: a view goes, and comes back as another one.
  EXPECT_TRUE(ReadAll(plain) == node_.Expected(false));
  ASSERT_TRUE(node_.Close(*process, true).ok());
  for (int i = 0; i < 1500 && node_.HeldNames().size() > 3; ++i)
    absl::SleepFor(absl::Milliseconds(20));
  ASSERT_TRUE(node_.Open(*process, true).ok());
  process->Kill();
  const int asked = node_.keys().requests();
  const absl::Status served = next->Serve();
  ASSERT_TRUE(served.ok()) << served;
  EXPECT_TRUE(ReadAll(plain) == node_.Expected(false));
  EXPECT_TRUE(ReadAll(OpenView(node_, true)) == node_.Expected(true));
  EXPECT_EQ(node_.keys().requests(), asked + 1) << "only for the view that is another one";
}

TEST_F(TakeOverTest, PrepareSaysWhichKeysAreMissing) {
  auto process = StartAndServe();
  for (const bool encrypted : {false, true}) ASSERT_TRUE(node_.Open(*process, encrypted).ok());
  node_.StopKeys();
  auto next = node_.Start();
  v1::DataPlaneRequest prepare;
  prepare.mutable_prepare()->set_timeout_ms(2000);
  const auto reply = next->Call(prepare);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->views(), 2u);
  EXPECT_EQ(reply->views_without_key(), 1u);
}

TEST_F(TakeOverTest, PrepareCountsViewsThatDoNotLoad) {
  auto process = StartAndServe();
  for (const bool encrypted : {false, true}) ASSERT_TRUE(node_.Open(*process, encrypted).ok());
  const UniqueFd bad = SealedMemfd("view", AsBytes("KAPSVIEW")).value();
  ASSERT_TRUE(node_.HolderClient().Put(ViewName(true), {bad.get(), bad.get(), bad.get()}).ok());
  auto next = node_.Start();
  v1::DataPlaneRequest prepare;
  prepare.mutable_prepare()->set_timeout_ms(10'000);
  const auto reply = next->Call(prepare);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->views(), 2u);
  EXPECT_EQ(reply->views_without_key(), 1u);
}

TEST_F(TakeOverTest, ARequestThatLostDescriptorsIsAnsweredAndTheNextOneIsWell) {
  auto process = node_.Start();
  v1::DataPlaneRequest request;
  request.set_id(900);
  request.mutable_serve();
  const std::string bytes = request.SerializeAsString();
  // More than are received, as where there is no room for them.
  constexpr size_t kFds = 2 * kMaxPacketFds;
  iovec io{const_cast<char*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char room[CMSG_SPACE(kFds * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  message.msg_control = room;
  message.msg_controllen = sizeof(room);
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(kFds * sizeof(int));
  const std::vector<int> fds(kFds, process->control());
  std::memcpy(CMSG_DATA(header), fds.data(), kFds * sizeof(int));
  ASSERT_EQ(sendmsg(process->control(), &message, 0), ssize_t(bytes.size()));
  const auto reply = control::ReceiveReply(process->control());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->id(), 900u);
  EXPECT_EQ(control::StatusOf(*reply).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(process->Serve().ok());
  EXPECT_TRUE(node_.Open(*process, true).ok());
}

TEST_F(TakeOverTest, APoisonousRequestFailsAfterAWhile) {
  auto process = StartAndServe();
  ASSERT_TRUE(node_.Open(*process, true).ok());
  const UniqueFd view = OpenView(node_, true);
  node_.StopKeys();
  process->Kill();
  process = StartAndServe();
  std::string got = "#";
  Reader reader(node_, [&] { got = ReadAll(view); });
  ASSERT_TRUE(AwaitParkedRead());
  absl::SleepFor(absl::Milliseconds(200));
  process->Kill();
  const auto memory = Memory();
  for (const uint32_t read : memory->ParkedReads()) memory->parked(read).attempts = kMaxAttempts;
  EXPECT_EQ(memory->ParkedReads().size(), 1u);
  node_.StartKeys();
  process = StartAndServe();
  reader.Join();
  EXPECT_LT(got.size(), node_.Expected(true).size());
  EXPECT_TRUE(ReadAll(view) == node_.Expected(true)) << "the next one is well";
}

TEST_F(TakeOverTest, WithoutControlItServesOnAndBeforeThatItEnds) {
  auto idle = node_.Start();
  idle->CloseControl();
  EXPECT_EQ(idle->WaitForEnd(), 0);
  auto process = StartAndServe();
  ASSERT_TRUE(node_.Open(*process, true).ok());
  process->CloseControl();
  EXPECT_TRUE(ReadAll(OpenView(node_, true)) == node_.Expected(true));
  EXPECT_TRUE(process->running());
}

TEST_F(TakeOverTest, WithoutHolderItServesOnAndSaysSo) {
  auto process = StartAndServe();
  ASSERT_TRUE(node_.Open(*process, false).ok());
  node_.holder().Stop();
  EXPECT_TRUE(node_.Open(*process, true).ok());
  EXPECT_TRUE(ReadAll(OpenView(node_, true)) == node_.Expected(true));
  ASSERT_TRUE(node_.Close(*process, false).ok());
  absl::SleepFor(absl::Milliseconds(100));
  const std::string log = process->Log();
  const size_t at = log.find("kapsule-holder is gone");
  ASSERT_NE(at, log.npos) << log;
  EXPECT_EQ(log.find("kapsule-holder is gone", at + 1), log.npos) << "once";
  EXPECT_TRUE(process->running());
}

TEST_F(TakeOverTest, BadMemoryOfRequestsIsRefused) {
  const UniqueFd bad = SealedMemfd("requests", AsBytes(std::string(1 << 20, 'x'))).value();
  ASSERT_TRUE(node_.HolderClient().Put("requests", {bad.get()}).ok());
  auto process = node_.Start();
  EXPECT_EQ(process->WaitForEnd(), 1);
  EXPECT_THAT(process->Log(), HasSubstr("memory of requests"));
}

TEST_F(TakeOverTest, AMemoryThatIsAnotherThanAtTheStartIsRefused) {
  auto late = node_.Start();
  v1::DataPlaneRequest prepare;
  prepare.mutable_prepare()->set_timeout_ms(1000);
  ASSERT_TRUE(late->Call(prepare).ok());  // it has begun
  auto process = StartAndServe();
  EXPECT_EQ(late->Serve().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(late->WaitForEnd(), 1) << "it is of no more use";
  EXPECT_EQ(process->Serve().code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(TakeOverTest, AViewWhoseImageIsBadIsLostAlone) {
  auto process = StartAndServe();
  for (const bool encrypted : {false, true}) ASSERT_TRUE(node_.Open(*process, encrypted).ok());
  const UniqueFd plain = OpenView(node_, false), lost = OpenView(node_, true);
  process->Kill();
  const UniqueFd bad = SealedMemfd("view", AsBytes("KAPSVIEW")).value();
  ASSERT_TRUE(node_.HolderClient().Put(ViewName(true), {bad.get(), bad.get(), bad.get()}).ok());
  process = StartAndServe();
  EXPECT_TRUE(ReadAll(plain) == node_.Expected(false));
  EXPECT_EQ(ReadAll(lost), "");
  EXPECT_THAT(process->Log(), HasSubstr("its view is lost"));
  EXPECT_THAT(node_.HeldNames(), ::testing::Contains(ViewName(true))) << "the only copy";
  EXPECT_TRUE(node_.Open(*process, true).ok());
  EXPECT_TRUE(ReadAll(OpenView(node_, true)) == node_.Expected(true));
}

TEST_F(TakeOverTest, CachesThatAreTooSmallAreRefused) {
  auto process = node_.Start({"--chunk-cache-bytes", "1000"});
  EXPECT_EQ(process->WaitForEnd(), 1);
  EXPECT_THAT(process->Log(), HasSubstr("--chunk-cache-bytes 1000 is too small"));
}

// Enough for keys, not for buffers.
TEST_F(TakeOverTest, WhereMemoryCannotBeLockedItSaysWhatFollows) {
  auto process = node_.Start({}, {"/usr/bin/prlimit", "--memlock=8388608", "/usr/bin/setpriv",
                                  "--bounding-set", "-ipc_lock"});
  const absl::Status served = process->Serve();
  ASSERT_TRUE(served.ok()) << served;
  EXPECT_TRUE(node_.Open(*process, true).ok());
  EXPECT_TRUE(ReadAll(OpenView(node_, true)) == node_.Expected(true));
  if (process->Log().find("a build with a sanitizer") != std::string::npos)
    GTEST_SKIP() << "sanitizers make mlock(2) do nothing";
  EXPECT_THAT(process->Log(), HasSubstr("RLIMIT_MEMLOCK of 8388608 bytes is too small"));
}

}  // namespace
}  // namespace kapsule::fuse
