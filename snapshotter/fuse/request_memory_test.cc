#include "snapshotter/fuse/request_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "snapshotter/fuse/test_views.h"

namespace kapsule::fuse {
namespace {

using testing::MakeMemory;
using testing::MakeRequest;
using testing::PutRequest;
using testing::Succeed;

// Of slot 0, where request_memory.h has them.
constexpr off_t kVersionAt = 8, kWorkersAt = 44, kStateAt = 4096, kViewAt = kStateAt + 8,
                kHandlesAt = kStateAt + 16;

template <typename T>
void StoreAt(int fd, off_t at, T value) {
  ASSERT_EQ(pwrite(fd, &value, sizeof(value), at), ssize_t(sizeof(value)));
}

// A view in place 5 that is open three times, and an OPEN in slot 0.
class IntentTest : public ::testing::Test {
 protected:
  void SetUp() override {
    view().handles = 3;
    view().listed = 1;
    view().used = 1;
    PutRequest(memory_->slot(0), MakeRequest(FUSE_OPEN, 9, std::string(8, '\0')));
  }
  SharedView& view() { return memory_->views()[5]; }
  void Intend(uint32_t index, uint64_t handles) {
    StoreAt(memory_->fd(), kViewAt, index);
    StoreAt(memory_->fd(), kHandlesAt, handles);
    StoreAt(memory_->fd(), kStateAt, uint32_t{SharedSlot::kIntent});
  }

  const std::unique_ptr<RequestMemory> memory_ = MakeMemory();
};

TEST_F(IntentTest, ARequestThatIntendedNothingIsDoneAgain) {
  const auto next = Succeed(*memory_);
  next->TakeOver();
  EXPECT_EQ(next->views()[5].handles, 3u);
  EXPECT_EQ(next->slot(0).state(), SharedSlot::kNone);
  EXPECT_EQ(next->slot(0).request().size(), sizeof(fuse_in_header) + 8);
}

TEST_F(IntentTest, AnIntentIsCompletedBeforeAndAfterItsCount) {
  for (const uint64_t reached : {3, 4}) {
    view().handles = reached;
    Intend(5, 4);
    const auto next = Succeed(*memory_);
    next->TakeOver();
    EXPECT_EQ(next->views()[5].handles, 4u) << reached;
    EXPECT_EQ(next->slot(0).state(), SharedSlot::kApplied);
    EXPECT_FALSE(next->slot(0).request().empty());
  }
}

TEST_F(IntentTest, WhatWasAppliedIsNotAppliedAgain) {
  memory_->slot(0).SetHandles(view(), 5, 4);
  const auto next = Succeed(*memory_);
  next->TakeOver();
  EXPECT_EQ(next->views()[5].handles, 4u);
  EXPECT_EQ(next->slot(0).state(), SharedSlot::kApplied);
  next->slot(0).Clear();
  EXPECT_TRUE(next->slot(0).request().empty());
  EXPECT_EQ(next->slot(0).state(), SharedSlot::kNone);
}

TEST_F(IntentTest, ARequestThatWasClearedIsOver) {
  memory_->slot(0).SetHandles(view(), 5, 4);
  StoreAt(memory_->fd(), kStateAt, uint32_t{SharedSlot::kApplied});
  uint32_t none = 0;  // the first store of Clear()
  std::memcpy(memory_->slot(0).buffer().data(), &none, sizeof(none));
  const auto next = Succeed(*memory_);
  next->TakeOver();
  EXPECT_TRUE(next->slot(0).request().empty());
  EXPECT_EQ(next->views()[5].handles, 4u);
}

TEST_F(IntentTest, AnIntentForAViewThatIsNotThereTouchesNothing) {
  for (const uint32_t index : {6u, kMaxViews, UINT32_MAX}) {
    Intend(index, 77);
    const auto next = Succeed(*memory_);
    next->TakeOver();
    EXPECT_EQ(next->views()[5].handles, 3u);
    EXPECT_EQ(next->views()[6].handles, 0u);
  }
}

// A process that opens and clears, killed wherever it is: the count is that of
// the requests it began, with and without the one under way.
TEST(RequestMemoryTest, AKilledProcessHasCountedEachRequestOnce) {
  const auto memory = MakeMemory();
  SharedView& view = memory->views()[0];
  view.used = 1;
  uint64_t done = 0;
  // More, and longer ones, where the machine is slow.
  for (int round = 0; round < 60 || (done <= 1000 && round < 1000); ++round) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      const RequestSlot slot = memory->slot(0);
      for (uint64_t unique = done + 1;; ++unique) {
        PutRequest(slot, MakeRequest(FUSE_OPEN, 9, std::string(8, '\0'), unique));
        slot.SetHandles(view, 0, view.handles + 1);
        slot.Clear();
      }
    }
    usleep(200 + 37 * round);
    kill(child, SIGKILL);
    ASSERT_EQ(waitpid(child, nullptr, 0), child);
    const auto next = Succeed(*memory);
    next->TakeOver();
    const RequestSlot slot = next->slot(0);
    const auto unique = LoadLe<uint64_t>(slot.buffer().data() + offsetof(fuse_in_header, unique));
    if (slot.request().empty()) {
      // Killed between requests, or while the next one was put there.
      EXPECT_TRUE(view.handles == unique || view.handles + 1 == unique) << round;
    } else if (slot.state() == SharedSlot::kApplied) {
      EXPECT_EQ(view.handles, unique) << round;
    } else {
      EXPECT_EQ(view.handles, unique - 1) << round;
    }
    done = view.handles;
    slot.Clear();
  }
  EXPECT_GT(done, 1000u);
}

TEST(RequestMemoryTest, ASuccessorFindsTheSlotsOfMoreWorkers) {
  const auto memory = MakeMemory(5);
  EXPECT_EQ(memory->slots(), 5u);
  PutRequest(memory->slot(4), MakeRequest(FUSE_STATFS, 1, ""));
  const auto next = Succeed(*memory, 2);
  EXPECT_TRUE(next->adopted());
  next->TakeOver();
  EXPECT_EQ(next->workers(), 2u);
  ASSERT_EQ(next->slots(), 5u);
  EXPECT_EQ(next->slot(4).request().size(), sizeof(fuse_in_header));
  EXPECT_EQ(Succeed(*next, 7)->slots(), 7u);
}

TEST(RequestMemoryTest, ALengthBeyondTheSlotIsCut) {
  const auto memory = MakeMemory();
  const uint32_t length = UINT32_MAX;
  std::memcpy(memory->slot(1).buffer().data(), &length, sizeof(length));
  EXPECT_EQ(memory->slot(1).request().size(), kRequestBuffer);
}

TEST(RequestMemoryTest, ParkedReadsOutliveTheProcess) {
  const auto memory = MakeMemory();
  fuse_in_header header{};
  fuse_read_in in{};
  std::vector<uint32_t> parked;
  for (uint32_t i = 0; i < kMaxParked; ++i) {
    header.unique = i;
    in.offset = 3 * i;
    const auto index = memory->Park(header, in, 2);
    ASSERT_TRUE(index.has_value());
    parked.push_back(*index);
  }
  EXPECT_EQ(memory->Park(header, in, 0), std::nullopt);
  for (uint32_t i = 0; i < kMaxParked; ++i)
    if (i != 1000) memory->Unpark(parked[i]);

  const auto next = Succeed(*memory);
  next->TakeOver();
  const std::vector<uint32_t> left = next->ParkedReads();
  ASSERT_EQ(left.size(), 1u);
  EXPECT_EQ(left[0], parked[1000]);
  EXPECT_EQ(next->parked(left[0]).header.unique, 1000u);
  EXPECT_EQ(next->parked(left[0]).in.offset, 3000u);
  EXPECT_EQ(next->parked(left[0]).attempts, 2u);
  for (uint32_t i = 0; i + 1 < kMaxParked; ++i) {
    const auto index = next->Park(header, in, 0);
    ASSERT_TRUE(index.has_value());
    EXPECT_NE(*index, left[0]);
  }
  EXPECT_EQ(next->Park(header, in, 0), std::nullopt);
}

TEST(RequestMemoryTest, AttemptsAreCountedUntilTheRequestIsOver) {
  const auto memory = MakeMemory();
  memory->slot(1).CountAttempt();
  memory->slot(1).CountAttempt();
  const auto next = Succeed(*memory);
  next->TakeOver();
  EXPECT_EQ(next->slot(1).attempts(), 2u);
  next->slot(1).Clear();
  EXPECT_EQ(next->slot(1).attempts(), 0u);
}

TEST(RequestMemoryTest, PagesOfWorkersThatThereAreNotTakeNoMemory) {
  const auto memory = MakeMemory(2);
  EXPECT_TRUE(memory->locked());
  struct stat st;
  ASSERT_EQ(fstat(memory->fd(), &st), 0);
  // The tables, and 64 KiB of two slots.
  EXPECT_LT(st.st_blocks * 512, 1200 * 1024);
}

TEST(RequestMemoryTest, WhatIsNoSuchMemoryIsRefused) {
  const auto adopt = [](UniqueFd fd) { return RequestMemory::Adopt(std::move(fd), 2).status(); };
  EXPECT_TRUE(absl::IsInvalidArgument(adopt(UniqueFd(open("/dev/null", O_RDWR | O_CLOEXEC)))));
  EXPECT_TRUE(absl::IsInvalidArgument(adopt(SealedMemfd("short", AsBytes("x")).value())));
  EXPECT_TRUE(absl::IsInvalidArgument(
      adopt(SealedMemfd("zeros", AsBytes(std::string(1 << 20, '\0'))).value())));

  const auto memory = MakeMemory();
  struct stat st;
  ASSERT_EQ(fstat(memory->fd(), &st), 0);
  std::string bytes(st.st_size, '\0');
  ASSERT_EQ(pread(memory->fd(), bytes.data(), bytes.size(), 0), st.st_size);
  const auto copy = [](const std::string& contents, int seals) {
    UniqueFd fd(memfd_create("copy", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    EXPECT_TRUE(WriteAll(fd.get(), AsBytes(contents)).ok());
    EXPECT_EQ(fcntl(fd.get(), F_ADD_SEALS, seals), 0);
    return fd;
  };
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;
  EXPECT_TRUE(adopt(copy(bytes, kSeals)).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(adopt(copy(bytes, F_SEAL_GROW)))) << "it could be cut";
  EXPECT_TRUE(absl::IsInvalidArgument(adopt(copy(bytes + std::string(4096, '\0'), kSeals))));
  EXPECT_TRUE(absl::IsInvalidArgument(adopt(copy(bytes.substr(0, bytes.size() / 2), kSeals))));
  for (off_t at = 0; at <= kWorkersAt; at += 4) {
    std::string changed = bytes;
    StoreLe<uint32_t>(changed.data() + at, 65);
    const absl::Status status = adopt(copy(changed, kSeals));
    EXPECT_EQ(absl::IsUnimplemented(status), at == kVersionAt) << at;
    EXPECT_FALSE(status.ok()) << at;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(RequestMemory::Make(0).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(RequestMemory::Make(65).status()));
}

}  // namespace
}  // namespace kapsule::fuse
