// kapsule-ctl status and upgrade, against a server of the same service. The
// end-to-end tests ask the real kapsule-snapshotter.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "core/base/unix_socket.h"
#include "kapsule-ctl/program_test_util.h"
#include "kapsule/v1/keys.grpc.pb.h"
#include "kapsule/v1/node.grpc.pb.h"

namespace kapsule::ctl {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class FixedNode final : public v1::Node::Service {
 public:
  grpc::Status Status(grpc::ServerContext*, const v1::StatusRequest*,
                      v1::StatusResponse* response) override {
    *response = status;
    return grpc::Status::OK;
  }
  grpc::Status Upgrade(grpc::ServerContext*, const v1::UpgradeRequest*,
                       v1::UpgradeResponse* response) override {
    response->set_old_pid(12);
    response->set_new_pid(13);
    response->set_stall_us(7500);
    return upgrade;
  }
  v1::StatusResponse status;
  grpc::Status upgrade;
};

class NodeProgramTest : public testing::Test {
 protected:
  NodeProgramTest() {
    node_.status.set_version("9.9");
    node_.status.set_pid(12);
    node_.status.set_serving(true);
    node_.status.set_failover(true);
    node_.status.set_views(3);
    node_.status.set_takeovers(2);
    node_.status.set_last_stall_us(7500);
    node_.status.set_view_mount("file-backed EROFS");
  }
  void Serve(grpc::Service* service) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + socket_, grpc::InsecureServerCredentials());
    builder.RegisterService(service);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
  }
  ~NodeProgramTest() override {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  }
  Ran Ctl(std::vector<std::string> command) {
    command.insert(command.begin(), KAPSULE_CTL);
    command.insert(command.end(), {"--address", socket_});
    return RunProgram(folder_, command);
  }

  const TempFolder folder_;
  const std::string socket_ = (folder_ / "snapshotter.sock").string();
  FixedNode node_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(NodeProgramTest, StatusIsShownToPeopleAndToPrograms) {
  Serve(&node_);
  const Ran text = Ctl({"status"});
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_EQ(text.out,
            "version       9.9\n"
            "kapsule-fuse  12\n"
            "layers        3, mounted by file-backed EROFS\n"
            "failover      on\n"
            "take-overs    2, the last in 7.5 ms\n");
  const Ran json = Ctl({"status", "--json"});
  EXPECT_EQ(json.code, 0) << json.err;
  const Json parsed = Json::parse(json.out);
  EXPECT_EQ(parsed["pid"], 12);
  EXPECT_EQ(parsed["layers"], 3);
  EXPECT_EQ(parsed["failover"], true);
  EXPECT_EQ(parsed["lastStallMs"], 7.5);
}

TEST_F(NodeProgramTest, AFailoverThatIsOffIsExplained) {
  node_.status.set_failover(false);
  node_.status.set_failover_problem("kapsule-holder has ended\x1b[2J");
  Serve(&node_);
  const Ran ran = Ctl({"status"});
  EXPECT_EQ(ran.code, 0);
  EXPECT_THAT(ran.out, HasSubstr("failover      off: kapsule-holder has ended?[2J\n"));
}

TEST_F(NodeProgramTest, AnUpgradeTellsWhoTookOver) {
  Serve(&node_);
  EXPECT_EQ(Ctl({"upgrade"}).out, "kapsule-fuse 13 took over from 12; readers waited for 7.5 ms\n");
  EXPECT_EQ(Json::parse(Ctl({"upgrade", "--json"}).out)["newPid"], 13);
}

TEST_F(NodeProgramTest, AnUpgradeThatWentBackSaysWhyAndFails) {
  node_.upgrade = {grpc::StatusCode::FAILED_PRECONDITION,
                   "no key for 1 of 3 layers (kapsule-fuse 12 serves on)"};
  Serve(&node_);
  const Ran ran = Ctl({"upgrade"});
  EXPECT_EQ(ran.code, 1);
  EXPECT_EQ(ran.out, "");
  EXPECT_EQ(ran.err,
            "kapsule-ctl: failed precondition: no upgrade: no key for 1 of 3 layers (kapsule-fuse"
            " 12 serves on)\n");
}

TEST_F(NodeProgramTest, WhereThereIsNoDaemonItSaysWhatToDo) {
  const Ran none = Ctl({"status"});
  EXPECT_EQ(none.code, 4);
  EXPECT_THAT(none.err, AllOf(HasSubstr(socket_), HasSubstr("is kapsule-snapshotter running")));
  { const UniqueFd stale = ListenUnix(socket_, SOCK_STREAM, 0600).value(); }
  const Ran ended = Ctl({"upgrade"});
  EXPECT_EQ(ended.code, 6);
  EXPECT_THAT(ended.err, HasSubstr("kapsule-snapshotter has ended"));
}

TEST_F(NodeProgramTest, AnOlderDaemonIsRecognised) {
  v1::Keys::Service another;
  Serve(&another);
  const Ran ran = Ctl({"status"});
  EXPECT_EQ(ran.code, 1);
  EXPECT_THAT(ran.err, HasSubstr("does not know the request"));
}

}  // namespace
}  // namespace kapsule::ctl
