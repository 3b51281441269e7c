// kapsule-snapshotter itself, with kapsule-fuse and kapsule-holder, but without
// containerd. Needs root.
#include <absl/time/clock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <csignal>

#include "core/base/unix_socket.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "snapshotter/daemon_process.h"

namespace kapsule::snapshotter {
namespace {

namespace fs = std::filesystem;
using grpc::health::v1::HealthCheckResponse;

constexpr int kEndMs = 20'000;

class ProgramTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(geteuid(), 0u) << "this test needs root";
    std::string name = "/tmp/kapsule-program-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    for (const char* made : {"keys", "content"}) ASSERT_TRUE(MakeDirs(folder_ / made, 0755).ok());
    auto process = DaemonProcess::Start(
        fs::read_symlink("/proc/self/exe").parent_path() / "kapsule-snapshotter",
        {"--root", folder_ / "root", "--address", folder_ / "s.sock", "--containerd-address",
         folder_ / "no-containerd.sock", "--content-root", folder_ / "content", "--keyprovider",
         folder_ / "keys/keys.sock", "--fuse-user", "12345", "--fetch-user", "12346",
         "--fetch-cache", folder_ / "fetched", "--metrics-address", folder_ / "metrics.sock"},
        {});
    ASSERT_TRUE(process.ok()) << process.status();
    process_ = *std::move(process);
    stub_ = grpc::health::v1::Health::NewStub(grpc::CreateChannel(
        "unix:" + (folder_ / "s.sock").string(), grpc::InsecureChannelCredentials()));
  }
  void TearDown() override {
    if (process_ != nullptr && kill(process_->pid(), SIGINT) == 0) {
      EXPECT_TRUE(process_->WaitForEnd(kEndMs));
      EXPECT_EQ(process_->End(), "exit status 0");
    }
    EXPECT_TRUE(folder_.empty() || RemoveTree(folder_).ok());
  }
  // Whether the health service says so of `service` within some seconds.
  bool Becomes(const std::string& service, HealthCheckResponse::ServingStatus expected) {
    for (int i = 0; i < 1000 && !process_->WaitForEnd(0); ++i) {
      grpc::health::v1::HealthCheckRequest request;
      request.set_service(service);
      HealthCheckResponse response;
      grpc::ClientContext context;
      context.set_wait_for_ready(true);
      context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
      if (stub_->Check(&context, request, &response).ok() && response.status() == expected)
        return true;
      absl::SleepFor(absl::Milliseconds(10));
    }
    return false;
  }
  // The answer of an HTTP page with its head.
  std::string Page(const std::string& path) const {
    const auto socket = ConnectUnix(folder_ / "metrics.sock", SOCK_STREAM);
    if (!socket.ok() || !SetTimeout(socket->get(), 10'000).ok()) return "";
    const std::string request = "GET " + path + " HTTP/1.1\r\n\r\n";
    EXPECT_EQ(send(socket->get(), request.data(), request.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(request.size()));
    std::string answer;
    char buffer[4096];
    for (ssize_t got; (got = recv(socket->get(), buffer, sizeof(buffer), 0)) > 0;)
      answer.append(buffer, static_cast<size_t>(got));
    return answer;
  }
  bool PageBecomes(const std::string& path, const std::string& part) const {
    std::string page;
    for (int i = 0; i < 1000 && page.find(part) == std::string::npos; ++i) {
      if (i > 0) absl::SleepFor(absl::Milliseconds(10));
      page = Page(path);
    }
    EXPECT_NE(page.find(part), std::string::npos) << page;
    return page.find(part) != std::string::npos;
  }
  pid_t HolderPid() const {
    const auto socket = ConnectUnix(folder_ / "root/holder.sock", SOCK_SEQPACKET);
    return socket.ok() ? PeerOf(socket->get()).value().pid : -1;
  }

  fs::path folder_;
  std::unique_ptr<DaemonProcess> process_;
  std::unique_ptr<grpc::health::v1::Health::Stub> stub_;
};

TEST_F(ProgramTest, TheHealthServiceTellsWhetherKapsuleFuseCanBeSucceeded) {
  EXPECT_TRUE(Becomes("", HealthCheckResponse::SERVING));
  EXPECT_TRUE(Becomes("failover", HealthCheckResponse::SERVING));
  const pid_t holder = HolderPid();
  ASSERT_GT(holder, 1);
  ASSERT_NE(holder, process_->pid());
  ASSERT_EQ(kill(holder, SIGKILL), 0);
  EXPECT_TRUE(Becomes("failover", HealthCheckResponse::NOT_SERVING));
  EXPECT_TRUE(Becomes("", HealthCheckResponse::SERVING));
}

TEST_F(ProgramTest, MetricsAndHealthAreThoseOfThisProcess) {
  ASSERT_TRUE(Becomes("", HealthCheckResponse::SERVING));
  EXPECT_TRUE(PageBecomes("/healthz", "HTTP/1.1 200 OK\r\n"));
  EXPECT_TRUE(PageBecomes("/healthz", "ok data plane\nok failover\nok fetcher\nok metadata\n"));
  for (const char* line :
       {"kapsule_data_plane_serving 1\n", "kapsule_data_plane_views 0\n", "kapsule_fetch_up 1\n",
        "kapsule_fetch_bytes_total 0\n", "kapsule_layers{state=\"mounted\"} 0\n",
        "kapsule_snapshots{kind=\"committed\"} 0\n",
        "kapsule_process_threads{program=\"kapsule-fetch\"} "})
    EXPECT_TRUE(PageBecomes("/metrics", line));
  const pid_t holder = HolderPid();
  ASSERT_GT(holder, 1);
  ASSERT_EQ(kill(holder, SIGKILL), 0);
  EXPECT_TRUE(PageBecomes("/healthz", "HTTP/1.1 503 Service Unavailable\r\n"));
  EXPECT_TRUE(PageBecomes("/healthz", "\nbad failover: "));
  EXPECT_TRUE(PageBecomes("/metrics", "kapsule_data_plane_failover 0\n"));
}

}  // namespace
}  // namespace kapsule::snapshotter
