#include "snapshotter/node_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

namespace kapsule::snapshotter {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// The service behind a real server.
class NodeServiceTest : public testing::Test {
 protected:
  NodeServiceTest() {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    stub_ = v1::Node::NewStub(server_->InProcessChannel({}));
  }
  ~NodeServiceTest() override { server_->Shutdown(); }

  v1::StatusResponse Status() {
    grpc::ClientContext context;
    v1::StatusResponse response;
    EXPECT_TRUE(stub_->Status(&context, {}, &response).ok());
    return response;
  }
  grpc::Status Upgrade(v1::UpgradeResponse* response) {
    grpc::ClientContext context;
    return stub_->Upgrade(&context, {}, response);
  }

  DataPlaneStatus status_{.pid = 12,
                          .serving = true,
                          .failover = true,
                          .views = 3,
                          .takeovers = 2,
                          .last_stall = absl::Microseconds(7500),
                          .view_mount = "file"};
  absl::Status upgraded_;
  NodeService service_{[this] { return status_; },
                       [this] {
                         if (upgraded_.ok()) status_.pid = 13;
                         return upgraded_;
                       }};
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Node::Stub> stub_;
};

TEST_F(NodeServiceTest, TheStatusIsThatOfTheDataPlane) {
  const v1::StatusResponse response = Status();
  EXPECT_EQ(response.version(), KAPSULE_VERSION);
  EXPECT_EQ(response.pid(), 12);
  EXPECT_TRUE(response.serving());
  EXPECT_TRUE(response.failover());
  EXPECT_EQ(response.failover_problem(), "");
  EXPECT_EQ(response.views(), 3u);
  EXPECT_EQ(response.takeovers(), 2u);
  EXPECT_EQ(response.last_stall_us(), 7500u);
  EXPECT_EQ(response.view_mount(), "file");
}

TEST_F(NodeServiceTest, WhereFailoverIsOffItSaysWhy) {
  status_.failover = false;
  EXPECT_THAT(Status().failover_problem(), HasSubstr("kapsule-holder has ended"));
  status_ = {};
  EXPECT_EQ(Status().pid(), 0);
  EXPECT_THAT(Status().failover_problem(), HasSubstr("no kapsule-fuse"));
}

TEST_F(NodeServiceTest, AnUpgradeTellsBothProcesses) {
  v1::UpgradeResponse response;
  ASSERT_TRUE(Upgrade(&response).ok());
  EXPECT_EQ(response.old_pid(), 12);
  EXPECT_EQ(response.new_pid(), 13);
  EXPECT_EQ(response.stall_us(), 7500u);
}

TEST_F(NodeServiceTest, AnUpgradeThatWentBackTellsWhyAndWhoServes) {
  upgraded_ = FailedPrecondition("no key for 1 of 3 layers\n\xff");
  v1::UpgradeResponse response;
  grpc::Status status = Upgrade(&response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(),
              AllOf(HasSubstr("no key for 1 of 3 layers"), HasSubstr("kapsule-fuse 12 serves on")));
  status_.serving = false;
  EXPECT_THAT(Upgrade(&response).error_message(), HasSubstr("no kapsule-fuse serves"));
}

}  // namespace
}  // namespace kapsule::snapshotter
