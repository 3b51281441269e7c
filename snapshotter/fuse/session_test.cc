#include "snapshotter/fuse/session.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>

#include "snapshotter/fuse/read_engine.h"
#include "snapshotter/fuse/read_scratch.h"
#include "snapshotter/fuse/test_views.h"

namespace kapsule::fuse {
namespace {

using testing::DigestStarting;
using testing::MakeTestView;

struct Answer {
  bool given = false;
  int error = 0;
  std::string body;
};

class SessionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    table_.Restore({});
    const ViewTable::Opening opening(table_, made_->view->name());
    ASSERT_TRUE(table_.Publish(opening, made_->view).ok());
  }

  Answer AskRaw(std::string_view request) {
    Session::Outcome outcome = session_.Handle(AsBytes(request), reply_, slot_);
    if (outcome.read) outcome.reply = DoRead(*outcome.read);
    if (outcome.reply.empty()) return {};
    const auto header = LoadLe<fuse_out_header>(outcome.reply.data());
    EXPECT_EQ(header.len, outcome.reply.size());
    EXPECT_EQ(header.unique, 77u);
    return {true, -header.error, std::string(AsText(outcome.reply.subspan(sizeof(header))))};
  }
  ByteSpan DoRead(const Session::PendingRead& read) {
    const auto status =
        engine_->ReadNow(*scratch_, *read.view, read.in.offset, reply_.body().first(read.length));
    return reply_.Finish(read.header.unique, status.ok() ? 0 : EIO, read.length);
  }
  static std::string Request(uint32_t opcode, uint64_t node, std::string_view body) {
    return testing::MakeRequest(opcode, node, body);
  }
  template <typename T>
  Answer Ask(uint32_t opcode, uint64_t node, const T& in) {
    return AskRaw(Request(opcode, node, testing::BodyOf(in)));
  }
  Answer Lookup(const std::string& name) {
    return AskRaw(Request(FUSE_LOOKUP, FUSE_ROOT_ID, name + '\0'));
  }
  Answer Read(uint64_t offset, uint32_t size) {
    fuse_read_in in{};
    in.fh = handle_;
    in.offset = offset;
    in.size = size;
    return Ask(FUSE_READ, node_, in);
  }
  int OpenWith(uint64_t node, uint32_t flags) {
    fuse_open_in in{};
    in.flags = flags;
    const Answer answer = Ask(FUSE_OPEN, node, in);
    if (answer.error == 0) handle_ = LoadLe<fuse_open_out>(answer.body.data()).fh;
    return answer.error;
  }

  const std::unique_ptr<testing::TestView> made_ = MakeTestView(DigestStarting("cd"), 2 << 20);
  const uint64_t node_ = ViewTable::NodeOf(made_->view->name());
  const std::unique_ptr<RequestMemory> memory_ = testing::MakeMemory();
  const RequestSlot slot_ = memory_->slot(0);
  uint64_t handle_ = 0;  // of the last opening
  const std::unique_ptr<ReadEngine> engine_ = ReadEngine::Make({}).value();
  const std::unique_ptr<ReadScratch> scratch_ = engine_->MakeScratch();
  ViewTable table_{*memory_};
  Session session_{table_};
  const LockedBuffer buffer_ = LockedBuffer::Make(Reply::kBufferSize).value();
  const Reply reply_{buffer_.bytes()};
};

TEST_F(SessionTest, InitAsksForWhatErofsNeeds) {
  fuse_init_in in{};
  in.major = 7;
  in.minor = 45;
  in.flags = ~0u;
  const Answer answer = Ask(FUSE_INIT, 0, in);
  ASSERT_EQ(answer.error, 0);
  ASSERT_EQ(answer.body.size(), sizeof(fuse_init_out));
  const auto out = LoadLe<fuse_init_out>(answer.body.data());
  EXPECT_EQ(out.flags,
            uint32_t{FUSE_ASYNC_READ | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES});
  EXPECT_EQ(out.flags2, 0u);  // no passthrough
  EXPECT_EQ(out.max_pages, 256);
  EXPECT_GE(out.max_background, 64);
  // The kernel refuses to read into less than this.
  EXPECT_GE(kRequestBuffer, out.max_write + sizeof(fuse_in_header) + sizeof(fuse_write_in));
  EXPECT_GE(kRequestBuffer, size_t{FUSE_MIN_READ_BUFFER});
  in.major = 6;
  EXPECT_EQ(Ask(FUSE_INIT, 0, in).error, EPROTO);
}

TEST_F(SessionTest, LookupFindsViewsByTheirWholeName) {
  const Answer answer = Lookup(made_->view->name());
  ASSERT_EQ(answer.error, 0);
  const auto out = LoadLe<fuse_entry_out>(answer.body.data());
  EXPECT_EQ(out.nodeid, node_);
  EXPECT_EQ(out.attr.size, made_->view->size());
  EXPECT_EQ(out.attr.mode, S_IFREG | 0400u);
  EXPECT_EQ(out.entry_valid, 0u);  // a withdrawn view must not be found
  EXPECT_EQ(Lookup(made_->view->name().substr(1)).error, ENOENT);
  EXPECT_EQ(Lookup(made_->view->name() + "0").error, ENOENT);
  EXPECT_EQ(Lookup("..").error, ENOENT);
  EXPECT_EQ(AskRaw(Request(FUSE_LOOKUP, node_, std::string("x\0", 2))).error, ENOTDIR);
  EXPECT_EQ(AskRaw(Request(FUSE_LOOKUP, FUSE_ROOT_ID, "unterminated")).error, EINVAL);
  EXPECT_EQ(AskRaw(Request(FUSE_LOOKUP, FUSE_ROOT_ID, std::string("a\0b\0", 4))).error, EINVAL);
  EXPECT_EQ(AskRaw(Request(FUSE_LOOKUP, FUSE_ROOT_ID, "")).error, EINVAL);
}

TEST_F(SessionTest, OnlyReadingIsOpened) {
  EXPECT_EQ(OpenWith(node_, O_WRONLY), EROFS);
  EXPECT_EQ(OpenWith(node_, O_RDWR), EROFS);
  EXPECT_EQ(OpenWith(FUSE_ROOT_ID, O_RDONLY), EISDIR);
  EXPECT_EQ(OpenWith(node_ + 1, O_RDONLY), ENOENT);
  EXPECT_EQ(Read(0, 4096).error, EBADF);  // nobody has opened it
  EXPECT_EQ(OpenWith(node_, O_RDONLY | O_DIRECT), 0);
  EXPECT_EQ(Read(0, 4096).error, 0);
  fuse_release_in in{};
  in.fh = handle_ + (uint64_t{1} << 32);
  EXPECT_EQ(Ask(FUSE_RELEASE, node_, in).error, 0);
  EXPECT_EQ(Read(0, 4096).error, 0) << "the handle of another generation";
  in.fh = handle_;
  EXPECT_EQ(Ask(FUSE_RELEASE, node_, in).error, 0);
  EXPECT_EQ(Read(0, 4096).error, EBADF);
}

TEST_F(SessionTest, WhatWasAnsweredIsAnsweredAgain) {
  const std::string open = Request(FUSE_OPEN, node_, testing::BodyOf(fuse_open_in{}));
  const auto again = [&] {
    const ByteSpan bytes = Session::AnswerApplied(AsBytes(open), reply_, slot_);
    const auto header = LoadLe<fuse_out_header>(bytes.data());
    return Answer{true, -header.error, std::string(AsText(bytes.subspan(sizeof(header))))};
  };
  table_.Withdraw(made_->view->name());
  ASSERT_EQ(AskRaw(open).error, ENOENT);
  EXPECT_EQ(slot_.state(), SharedSlot::kApplied);
  {
    const ViewTable::Opening opening(table_, made_->view->name());
    ASSERT_TRUE(table_.Publish(opening, made_->view).ok());
  }
  EXPECT_EQ(again().error, ENOENT) << "although it would succeed now";
  slot_.Clear();
  const Answer opened = AskRaw(open);
  ASSERT_EQ(opened.error, 0);
  EXPECT_EQ(again().error, 0);
  EXPECT_TRUE(again().body == opened.body);
}

TEST_F(SessionTest, AReadIsNeverShortInsideTheFile) {
  ASSERT_EQ(OpenWith(node_, O_RDONLY), 0);
  const uint64_t size = made_->view->size();
  const std::string expected = testing::BytesOf(*made_);
  for (const uint32_t length : {1u, 4095u, 4096u, 65537u, uint32_t{kMaxRead}})
    for (const uint64_t offset : {uint64_t{0}, uint64_t{1}, uint64_t{65535}, size - kMaxRead}) {
      const Answer answer = Read(offset, length);
      ASSERT_EQ(answer.error, 0);
      EXPECT_TRUE(answer.body == expected.substr(offset, length)) << offset << "+" << length;
    }
  EXPECT_EQ(Read(size - 10, 4096).body.size(), 10u);
  EXPECT_TRUE(Read(size, 4096).body.empty());
  EXPECT_EQ(Read(UINT64_MAX, 4096).error, 0);
  EXPECT_TRUE(Read(UINT64_MAX, 4096).body.empty());
  EXPECT_TRUE(Read(0, 0).body.empty());
  EXPECT_EQ(Read(0, kMaxRead + 1).error, EINVAL);
  EXPECT_EQ(Read(0, UINT32_MAX).error, EINVAL);
}

TEST_F(SessionTest, ABadChunkIsEioWithoutABody) {
  ASSERT_EQ(OpenWith(node_, O_RDONLY), 0);
  made_->layer.bytes[100'000] ^= 1;
  const Answer answer = Read(0, kMaxRead);
  EXPECT_EQ(answer.error, EIO);
  EXPECT_TRUE(answer.body.empty());
}

TEST_F(SessionTest, TheDirectoryIsListedInPiecesOfAnySize) {
  std::vector<std::unique_ptr<testing::TestView>> more;
  for (const char* start : {"00ab", "ff", "77"}) {
    more.push_back(MakeTestView(DigestStarting(start), 10));
    const ViewTable::Opening opening(table_, more.back()->view->name());
    ASSERT_TRUE(table_.Publish(opening, more.back()->view).ok());
  }
  for (const uint32_t size : {88u, 100u, 200u, 4096u}) {
    std::vector<std::string> names;
    fuse_read_in in{};
    in.size = size;
    for (;;) {
      const Answer answer = Ask(FUSE_READDIR, FUSE_ROOT_ID, in);
      ASSERT_EQ(answer.error, 0);
      ASSERT_LE(answer.body.size(), size);
      if (answer.body.empty()) break;
      for (size_t at = 0; at < answer.body.size();) {
        fuse_dirent entry;
        std::memcpy(&entry, answer.body.data() + at, FUSE_NAME_OFFSET);
        names.push_back(answer.body.substr(at + FUSE_NAME_OFFSET, entry.namelen));
        EXPECT_GT(static_cast<int64_t>(entry.off), static_cast<int64_t>(in.offset));
        in.offset = entry.off;
        at += FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + entry.namelen);
      }
    }
    ASSERT_EQ(names.size(), 6u) << size;
    EXPECT_EQ(names[0], ".");
    EXPECT_EQ(names[1], "..");
    EXPECT_EQ(names[2], more[0]->view->name());
    EXPECT_EQ(names[5], more[1]->view->name());
  }
  fuse_read_in in{};
  in.size = kMaxRead + 1;
  EXPECT_EQ(Ask(FUSE_READDIR, FUSE_ROOT_ID, in).error, EINVAL);
}

TEST_F(SessionTest, UnknownRequestsAreEnosysAndSomeHaveNoReply) {
  for (const uint32_t opcode : {0u, uint32_t{FUSE_SETATTR}, uint32_t{FUSE_WRITE},
                                uint32_t{FUSE_UNLINK}, uint32_t{FUSE_IOCTL}, 52u, 9999u, ~0u})
    EXPECT_EQ(AskRaw(Request(opcode, FUSE_ROOT_ID, std::string(200, 'x'))).error, ENOSYS);
  for (const uint32_t opcode : {FUSE_FORGET, FUSE_BATCH_FORGET, FUSE_INTERRUPT})
    EXPECT_FALSE(AskRaw(Request(opcode, node_, std::string(16, '\0'))).given);
}

TEST_F(SessionTest, EveryTruncationIsDroppedOrEinval) {
  for (const uint32_t opcode : {FUSE_INIT, FUSE_LOOKUP, FUSE_GETATTR, FUSE_OPEN, FUSE_READ,
                                FUSE_RELEASE, FUSE_OPENDIR, FUSE_READDIR}) {
    const std::string whole = Request(opcode, FUSE_ROOT_ID, std::string(64, '\1'));
    for (size_t n = 0; n < sizeof(fuse_in_header); ++n)
      EXPECT_FALSE(AskRaw(std::string_view(whole).substr(0, n)).given);
    for (size_t n = sizeof(fuse_in_header); n < whole.size(); ++n)
      EXPECT_EQ(AskRaw(std::string_view(whole).substr(0, n)).error, EINVAL);
    for (const size_t n : {size_t{0}, size_t{3}})  // well-formed, but too short for its kind
      EXPECT_EQ(AskRaw(Request(opcode, FUSE_ROOT_ID, std::string(n, '\1'))).error, EINVAL);
  }
  std::string notification = Request(FUSE_READ, node_, std::string(40, '\0'));
  StoreLe<uint64_t>(notification.data() + offsetof(fuse_in_header, unique), 0);
  EXPECT_TRUE(session_.Handle(AsBytes(notification), reply_, slot_).reply.empty());
}

}  // namespace
}  // namespace kapsule::fuse
