#include "core/control/holder_store.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

namespace kapsule::control {
namespace {

using absl::StatusCode;
using ::testing::ElementsAre;

class HolderStoreTest : public testing::Test {
 protected:
  StatusCode Put(std::string_view name, size_t count) {
    UniqueFd fds[4];
    for (size_t i = 0; i < count; ++i) fds[i] = UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC));
    return store_.Put(name, std::span(fds).first(count));
  }
  // The code of the answer to a request of these bytes.
  StatusCode Handle(const std::string& request, std::span<UniqueFd> fds = {},
                    Requester from = Requester::kRoot) {
    answer_ = store_.Handle(from, AsBytes(request), fds, out_);
    return static_cast<StatusCode>(out_[0]);
  }
  std::vector<std::string> ListPage(std::string_view prefix, std::string_view after = "") {
    std::string request{'\x04', static_cast<char>(prefix.size())};
    EXPECT_EQ(Handle(request.append(prefix).append(after)), StatusCode::kOk);
    std::vector<std::string> names;
    for (size_t at = 2; at < answer_.bytes; at += 1 + names.back().size())
      names.emplace_back(AsText(out_).substr(at + 1, static_cast<size_t>(out_[at])));
    return names;
  }

  HolderStore store_{kMaxHeldNames * kMaxHeldFds};
  std::array<std::byte, kMaxHolderAnswer> out_;
  HolderStore::Answer answer_;
};

TEST_F(HolderStoreTest, NamesComeInOrderWhateverTheOrderOfPuts) {
  for (const char* name : {"view/b", "fuse", "view/a", "viex", "requests", "view/c"})
    EXPECT_EQ(Put(name, 1), StatusCode::kOk);
  EXPECT_THAT(ListPage(""), ElementsAre("fuse", "requests", "view/a", "view/b", "view/c", "viex"));
  EXPECT_THAT(ListPage("view/"), ElementsAre("view/a", "view/b", "view/c"));
  EXPECT_THAT(ListPage("view/", "view/a"), ElementsAre("view/b", "view/c"));
  EXPECT_THAT(ListPage("view/", "view/aa"), ElementsAre("view/b", "view/c"));
  store_.Drop("view/b");
  store_.Drop("view/b");
  EXPECT_THAT(ListPage("view/"), ElementsAre("view/a", "view/c"));
  EXPECT_THAT(ListPage("x"), ElementsAre());
}

TEST_F(HolderStoreTest, WhatIsReplacedOrDroppedIsClosed) {
  int pipes[2];
  ASSERT_EQ(pipe2(pipes, O_CLOEXEC | O_NONBLOCK), 0);
  const UniqueFd reader(pipes[0]);
  UniqueFd writer(pipes[1]);
  char c;
  ASSERT_EQ(store_.Put("fuse", {&writer, 1}), StatusCode::kOk);
  EXPECT_FALSE(writer.valid());
  EXPECT_EQ(read(reader.get(), &c, 1), -1);  // open: EAGAIN
  EXPECT_EQ(Put("fuse", 3), StatusCode::kOk);
  EXPECT_EQ(read(reader.get(), &c, 1), 0);
  EXPECT_EQ(store_.Get("fuse").size(), 3u);
  EXPECT_EQ(store_.fds(), 3u);
  const int held = store_.Get("fuse")[2].get();
  store_.Clear();
  EXPECT_EQ(fcntl(held, F_GETFD), -1);
  EXPECT_EQ(store_.fds(), 0u);
  EXPECT_TRUE(store_.Get("fuse").empty());
}

TEST_F(HolderStoreTest, TheTableTakesItsNumberOfNamesAndNoMore) {
  const auto name = [](size_t i) { return fmt::format("view/{:064x}", i * 7919 % kMaxHeldNames); };
  HolderStore store(kMaxHeldNames);
  for (size_t i = 0; i < kMaxHeldNames; ++i) {
    UniqueFd fd(100'000 + static_cast<int>(i));  // not a descriptor: only counted
    ASSERT_EQ(store.Put(name(i), {&fd, 1}), StatusCode::kOk);
  }
  UniqueFd fd(200'000);
  EXPECT_EQ(store.Put("one-more", {&fd, 1}), StatusCode::kResourceExhausted);
  EXPECT_TRUE(fd.valid());
  EXPECT_EQ(store.Put(name(5), {&fd, 1}), StatusCode::kOk);
  // A client that asks page by page sees each name once, in order.
  size_t seen = 0, pages = 0;
  for (std::string last, request; pages == 0 || out_[1] != std::byte{0}; ++pages) {
    request = std::string("\x04\x05view/", 7) + last;
    answer_ = store.Handle(Requester::kOwnUser, AsBytes(request), {}, out_);
    for (size_t at = 2; at < answer_.bytes; at += 70, ++seen) {
      last = AsText(out_).substr(at + 1, 69);
      ASSERT_EQ(last, fmt::format("view/{:064x}", seen));
    }
  }
  EXPECT_EQ(seen, kMaxHeldNames);
  EXPECT_GT(pages, 10u);
  store.Drop(name(9));
  UniqueFd other(200'001);
  EXPECT_EQ(store.Put("one-more", {&other, 1}), StatusCode::kOk);
}

TEST_F(HolderStoreTest, TheLimitOfDescriptorsCountsWhatIsReplaced) {
  HolderStore store(4);
  const auto put = [&](const char* name, size_t count) {
    UniqueFd fds[3];
    for (UniqueFd& fd : fds) fd = UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC));
    return store.Put(name, std::span(fds).first(count));
  };
  EXPECT_EQ(put("a", 3), StatusCode::kOk);
  EXPECT_EQ(put("b", 2), StatusCode::kResourceExhausted);
  EXPECT_EQ(put("b", 1), StatusCode::kOk);
  EXPECT_EQ(put("a", 3), StatusCode::kOk);
}

TEST_F(HolderStoreTest, BadRequestsChangeNothing) {
  UniqueFd fd(open("/dev/null", O_RDONLY | O_CLOEXEC));
  const std::string long_name(kMaxHeldName + 1, 'a');
  for (const std::string& request :
       std::vector<std::string>{"", "\x01", std::string("\0\x01x", 3), "\x06\x01x", "\xff\x01x",
                                std::string("\x01\0", 2),
                                "\x01\x05"
                                "fus",
                                "\x01\x04"
                                "fusey",
                                "\x01\xff"
                                "fuse",
                                "\x01\x02"
                                "a:",
                                "\x01\x02"
                                "A/",
                                std::string("\x01\x03"
                                            "a\0b",
                                            5),
                                "\x01" + std::string(1, '\x51') + long_name})
    EXPECT_EQ(Handle(request, {&fd, 1}), StatusCode::kInvalidArgument) << ToHex(AsBytes(request));
  EXPECT_EQ(Handle("\x01\x04"
                   "fuse"),
            StatusCode::kInvalidArgument);  // no descriptor
  EXPECT_EQ(Handle("\x03\x04"
                   "fuse",
                   {&fd, 1}),
            StatusCode::kInvalidArgument);  // one too many
  EXPECT_EQ(Handle(std::string("\x05\0", 2), {&fd, 1}), StatusCode::kInvalidArgument);
  EXPECT_EQ(Handle("\x02\x04"
                   "fuse"),
            StatusCode::kNotFound);
  EXPECT_TRUE(fd.valid());
  EXPECT_EQ(store_.names(), 0u);
}

TEST_F(HolderStoreTest, TheDataPlanesUserMayNotForgeWhatRootTrusts) {
  UniqueFd fd(open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(Put("process", 1), StatusCode::kOk);
  for (const char* request : {"\x01\x07process",
                              "\x01\x07"
                              "control",
                              "\x01\x04"
                              "fuse"})
    EXPECT_EQ(Handle(request, {&fd, 1}, Requester::kOwnUser), StatusCode::kPermissionDenied);
  EXPECT_EQ(Handle("\x03\x07process", {}, Requester::kOwnUser), StatusCode::kPermissionDenied);
  EXPECT_EQ(Handle(std::string("\x05\0", 2), {}, Requester::kOwnUser),
            StatusCode::kPermissionDenied);
  EXPECT_EQ(Handle("\x02\x07process", {}, Requester::kOwnUser), StatusCode::kOk);
  EXPECT_EQ(answer_.fds.size(), 1u);
  EXPECT_EQ(Handle("\x01\x08requests", {&fd, 1}, Requester::kOwnUser), StatusCode::kOk);
  EXPECT_EQ(Handle("\x03\x06view/a", {}, Requester::kOwnUser), StatusCode::kOk);
  EXPECT_EQ(store_.names(), 2u);
}

class Recorder final : public HeldMirror {
 public:
  bool Added(std::string_view name, std::span<const UniqueFd> fds) override {
    events.push_back(fmt::format("+{}{}", name, fds.size()));
    return name != "not-this";
  }
  void Removed(std::string_view name, size_t fds) override {
    events.push_back(fmt::format("-{}{}", name, fds));
  }
  std::vector<std::string> events;
};

TEST_F(HolderStoreTest, AMirrorHearsOfEveryChangeToWhatItHas) {
  Recorder recorder;
  HolderStore store(100, &recorder);
  const auto put = [&](std::string_view name, size_t count) {
    UniqueFd fds[4];
    for (UniqueFd& fd : fds) fd = UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC));
    store.Put(name, std::span(fds).first(count));
  };
  put("a", 2);
  put("a", 1);
  put("b", 4);  // refused
  put("b", 3);
  put("not-this", 1);
  store.Drop("none");
  store.Drop("a");
  answer_ = store.Handle(Requester::kRoot, AsBytes(std::string("\x05\0", 2)), {}, out_);
  EXPECT_TRUE(answer_.quit);
  EXPECT_EQ(store.names(), 0u);
  EXPECT_THAT(recorder.events, ElementsAre("+a2", "-a2", "+a1", "+b3", "+not-this1", "-a1", "-b3"));
}

}  // namespace
}  // namespace kapsule::control
