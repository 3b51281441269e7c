#include "core/control/holder_server.h"

#include <absl/time/clock.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "core/base/unix_socket.h"

namespace kapsule::control {
namespace {

using absl::StatusCode;
using ::testing::ElementsAre;

constexpr uid_t kOwn = 65533;

std::string TempFolder() {
  std::string name = "/tmp/kapsule-holder-XXXXXX";
  if (mkdtemp(name.data()) == nullptr) abort();
  return name;
}

UniqueFd Memfd(const std::string& text) { return SealedMemfd("held", AsBytes(text)).value(); }

// The store and the server on a thread of their own, as kapsule-holder runs them.
class HolderServerTest : public testing::Test {
 protected:
  HolderServerTest() {
    server_ =
        HolderServer::Make(ListenUnix(path_, SOCK_SEQPACKET, 0666).value(), kOwn, store_).value();
    chmod(folder_.c_str(), 0755);
    thread_ = std::thread([this] { end_ = server_->Run(stop_.get()); });
  }
  ~HolderServerTest() override {
    Stop();
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }
  void Stop() {
    if (!thread_.joinable()) return;
    const uint64_t one = 1;
    EXPECT_EQ(write(stop_.get(), &one, sizeof(one)), 8);
    thread_.join();
    server_.reset();
  }
  UniqueFd Connect() { return ConnectUnix(path_, SOCK_SEQPACKET).value(); }

  const std::string folder_ = TempFolder();
  const std::string path_ = folder_ + "/s";
  const UniqueFd stop_{eventfd(0, EFD_CLOEXEC)};
  HolderStore store_{1000};
  std::unique_ptr<HolderServer> server_;
  absl::StatusOr<HolderServer::End> end_ = HolderServer::End::kStopped;
  std::thread thread_;
};

TEST_F(HolderServerTest, DescriptorsOutliveTheClientThatPutThem) {
  {
    const Holder first(Connect());
    const UniqueFd a = Memfd("image"), b = Memfd("annotations");
    ASSERT_TRUE(first.Put("view/1", {a.get(), b.get()}).ok());
    ASSERT_TRUE(first.Put("fuse", {b.get()}).ok());
  }
  const Holder second(Connect());
  EXPECT_THAT(second.List("").value(), ElementsAre("fuse", "view/1"));
  const std::vector<UniqueFd> got = second.Get("view/1").value();
  ASSERT_EQ(got.size(), 2u);
  EXPECT_EQ(ReadSealedMemfd(got[0].get(), 100).value(), "image");
  EXPECT_EQ(ReadSealedMemfd(got[1].get(), 100).value(), "annotations");
  EXPECT_NE(fcntl(got[0].get(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_TRUE(second.Drop("view/1").ok());
  EXPECT_TRUE(second.Drop("view/1").ok());
  EXPECT_EQ(second.Get("view/1").status().code(), StatusCode::kNotFound);
}

// As where kapsule-snapshotter makes the socket and kapsule-holder serves it.
TEST_F(HolderServerTest, ItsClientsAreToldTheProcessThatServesAsTheirPeer) {
  const std::string path = folder_ + "/other";
  const UniqueFd listening = ListenUnix(path, SOCK_SEQPACKET, 0666).value();
  const UniqueFd before = ConnectUnix(path, SOCK_SEQPACKET).value();
  EXPECT_EQ(PeerOf(before.get())->pid, getpid());
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd out(ends[0]), in(ends[1]);
  const pid_t child = fork();
  if (child == 0) {
    const auto server = HolderServer::Make(listening.Duplicate().value(), kOwn, store_);
    _exit(server.ok() && write(in.get(), "x", 1) == 1 ? 0 : 1);
  }
  char byte;
  ASSERT_EQ(read(out.get(), &byte, 1), 1);
  EXPECT_EQ(PeerOf(ConnectUnix(path, SOCK_SEQPACKET)->get())->pid, child);
  EXPECT_EQ(waitpid(child, nullptr, 0), child);
}

TEST_F(HolderServerTest, AHolderThatHangsIsUnavailableAfterTheClientsPatience) {
  const std::string path = folder_ + "/hung";
  const UniqueFd listening = ListenUnix(path, SOCK_SEQPACKET, 0666).value();  // and nobody serves
  const Holder holder(ConnectUnix(path, SOCK_SEQPACKET).value(), absl::Milliseconds(50));
  const absl::Time begin = absl::Now();
  EXPECT_EQ(holder.List("").status().code(), StatusCode::kUnavailable);
  EXPECT_LT(absl::Now() - begin, absl::Seconds(4));
}

TEST_F(HolderServerTest, WrongArgumentsAreRefusedBeforeTheyAreSent) {
  const Holder holder(Connect());
  const int null = 0;
  EXPECT_EQ(holder.Put("a:b", {null}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(holder.Put("", {null}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(holder.Put("a", {}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(holder.Put("a", {0, 0, 0, 0}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(holder.Get(std::string(81, 'a')).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(holder.List("A").status().code(), StatusCode::kInvalidArgument);
}

TEST_F(HolderServerTest, AThousandNamesAreListedAndTheTableIsFullAfterThem) {
  const Holder holder(Connect());
  std::vector<std::string> names;
  for (int i = 0; i < 1000; ++i) {
    names.push_back(fmt::format("view/{:064x}", i));
    ASSERT_TRUE(holder.Put(names.back(), {0}).ok());
  }
  EXPECT_EQ(holder.Put("view/x", {0}).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(holder.List("view/").value(), names);
}

TEST_F(HolderServerTest, ThreadsShareAConnection) {
  const Holder holder(Connect());
  const auto work = [&](int thread) {
    const std::string name = fmt::format("view/{}", thread);
    for (int i = 0; i < 200; ++i) {
      const UniqueFd fd = Memfd(name);
      ASSERT_TRUE(holder.Put(name, {fd.get()}).ok());
      const auto got = holder.Get(name);
      ASSERT_TRUE(got.ok()) << got.status();
      ASSERT_EQ(ReadSealedMemfd((*got)[0].get(), 100).value(), name);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
}

TEST_F(HolderServerTest, QuitLetsGoOfEverythingAndCallsFailThen) {
  const Holder holder(Connect());
  int pipes[2];
  ASSERT_EQ(pipe2(pipes, O_CLOEXEC | O_NONBLOCK), 0);
  const UniqueFd reader(pipes[0]);
  UniqueFd writer(pipes[1]);
  ASSERT_TRUE(holder.Put("fuse", {writer.get()}).ok());
  writer.reset();
  ASSERT_TRUE(holder.Quit().ok());
  char c;
  EXPECT_EQ(read(reader.get(), &c, 1), 0);
  thread_.join();
  EXPECT_EQ(end_.value(), HolderServer::End::kQuit);
  server_.reset();
  EXPECT_EQ(holder.Put("fuse", {0}).code(), StatusCode::kUnavailable);
  EXPECT_EQ(holder.List("").status().code(), StatusCode::kUnavailable);
}

TEST_F(HolderServerTest, BrokenClientsAreDroppedAndOthersServedOn) {
  const Holder good(Connect());
  const std::vector<std::string> broken = {"", "x", std::string(kMaxHolderRequest + 1, 'a')};
  for (const std::string& bytes : broken) {
    const UniqueFd client = Connect();
    ASSERT_TRUE(SendPacket(client.get(), AsBytes(bytes)).ok());  // no socket for an answer
    ASSERT_TRUE(SetTimeout(client.get(), 30'000).ok());
    EXPECT_EQ(ReceivePacket(client.get()).status().code(), StatusCode::kUnavailable);
    EXPECT_TRUE(good.List("").ok());
  }
  // An answer that nobody can be given: a file, and a socket that is full.
  const UniqueFd client = Connect(), file = Memfd("");
  const int on = 1;  // as a Holder does, or what it sends while it is accepted has no uid
  ASSERT_EQ(setsockopt(client.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)), 0);
  ASSERT_TRUE(SendPacket(client.get(),
                         AsBytes("\x02\x04"
                                 "fuse"),
                         {file.get()})
                  .ok());
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
  const UniqueFd silent(pair[0]), full(pair[1]);
  while (send(full.get(), broken[2].data(), broken[2].size(), MSG_DONTWAIT) > 0) {
  }
  ASSERT_TRUE(SendPacket(client.get(),
                         AsBytes("\x02\x04"
                                 "fuse"),
                         {full.get()})
                  .ok());
  EXPECT_TRUE(good.List("").ok());
}

TEST_F(HolderServerTest, ASeventeenthClientIsTurnedAway) {
  std::vector<std::unique_ptr<Holder>> clients;
  for (size_t i = 0; i < HolderServer::kMaxClients; ++i) {
    clients.push_back(std::make_unique<Holder>(Connect()));
    ASSERT_TRUE(clients.back()->List("").ok());
  }
  EXPECT_EQ(Holder(Connect()).List("").status().code(), StatusCode::kUnavailable);
  clients.erase(clients.begin() + 3);
  EXPECT_TRUE(clients[0]->List("").ok());  // so the server has seen that one go
  EXPECT_TRUE(Holder(Connect()).List("").ok());
}

// Runs `body` as another user in a process of its own; true where it was true.
template <typename Body>
bool AsUser(uid_t uid, Body body) {
  const pid_t pid = fork();
  if (pid == 0) _exit(setresuid(uid, uid, uid) == 0 && body() ? 0 : 1);
  int status = -1;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST_F(HolderServerTest, WhatARequestMayDoDependsOnWhoSendsItNotOnWhoConnected) {
  ASSERT_EQ(geteuid(), 0u) << "run this as root";
  const Holder roots(Connect());  // as kapsule-snapshotter hands it to kapsule-fuse
  ASSERT_TRUE(roots.Put("process", {0}).ok());
  EXPECT_TRUE(AsUser(kOwn, [&] {
    return roots.Put("process", {0}).code() == StatusCode::kPermissionDenied &&
           roots.Put("view/1", {0}).ok() && roots.Get("process").ok() &&
           roots.Quit().code() == StatusCode::kPermissionDenied;
  }));
  EXPECT_TRUE(AsUser(kOwn, [&] { return Holder(Connect()).Put("requests", {0}).ok(); }));
  EXPECT_THAT(roots.List("").value(), ElementsAre("process", "requests", "view/1"));
  EXPECT_TRUE(AsUser(kOwn + 1, [&] {
    return Holder(Connect()).List("").status().code() == StatusCode::kUnavailable;
  }));
  // A stranger with root's connection spoils it, and learns nothing.
  EXPECT_TRUE(
      AsUser(kOwn + 1, [&] { return roots.List("").status().code() == StatusCode::kUnavailable; }));
}

TEST_F(HolderServerTest, TheHoldersOwnUserCannotKeepRootOut) {
  ASSERT_EQ(geteuid(), 0u) << "run this as root";
  EXPECT_TRUE(AsUser(kOwn, [&] {
    std::vector<UniqueFd> connections;
    for (size_t i = 0; i < HolderServer::kMaxClients; ++i) connections.push_back(Connect());
    // The last one's fate is known when the server has answered the first.
    const Holder first(std::move(connections[0]));
    if (!first.List("").ok()) return false;
    const pid_t root = getppid();
    return root > 0 && connections.size() == HolderServer::kMaxClients &&
           Holder(Connect()).List("").status().code() == StatusCode::kUnavailable;
  }));
  EXPECT_TRUE(Holder(Connect()).List("").ok());
}

}  // namespace
}  // namespace kapsule::control
