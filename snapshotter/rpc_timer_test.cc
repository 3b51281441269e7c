#include "snapshotter/rpc_timer.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <map>

#include "core/base/file.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace kapsule::snapshotter {
namespace {

namespace api = grpc::health::v1;

class OneService final : public api::Health::Service {
  grpc::Status Check(grpc::ServerContext*, const api::HealthCheckRequest* request,
                     api::HealthCheckResponse*) override {
    if (request->service() == "known") return grpc::Status::OK;
    return {grpc::StatusCode::NOT_FOUND, "no such service"};
  }
};

// A call of a method that nobody has.
grpc::StatusCode CallNobody(const std::shared_ptr<grpc::Channel>& channel, const char* method) {
  grpc::GenericStub stub(channel);
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  grpc::ByteBuffer answer;
  grpc::Status status;
  void* tag = nullptr;
  bool ok = false;
  const auto call = stub.PrepareUnaryCall(&context, method, grpc::ByteBuffer(), &queue);
  call->StartCall();
  call->Finish(&answer, &status, nullptr);
  queue.Next(&tag, &ok);
  return status.error_code();
}

TEST(RpcTimerTest, EveryAnswerIsCountedByMethodAndCode) {
  std::string dir = "/tmp/kapsule-rpc-XXXXXX";
  ASSERT_NE(mkdtemp(dir.data()), nullptr);
  std::map<std::pair<std::string, int>, int> counts;  // of one thread: calls come in turn
  absl::Duration longest;
  OneService service;
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  builder.AddListeningPort("unix:" + dir + "/s", grpc::InsecureServerCredentials());
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> timers;
  timers.push_back(
      TimeRpcs([&](const std::string& method, grpc::StatusCode code, absl::Duration duration) {
        ++counts[{method, code}];
        longest = std::max(longest, duration);
      }));
  builder.experimental().SetInterceptorCreators(std::move(timers));
  const auto server = builder.BuildAndStart();
  ASSERT_NE(server, nullptr);
  const auto channel =
      grpc::CreateChannel("unix:" + dir + "/s", grpc::InsecureChannelCredentials());
  const auto stub = api::Health::NewStub(channel);
  for (const char* name : {"known", "known", "other"}) {
    grpc::ClientContext context;
    api::HealthCheckRequest request;
    request.set_service(name);
    api::HealthCheckResponse response;
    stub->Check(&context, request, &response);
  }
  for (const char* method : {"/evil.Service/One", "/evil.Service/Two", "/evil"})
    EXPECT_EQ(CallNobody(channel, method), grpc::StatusCode::UNIMPLEMENTED);
  server->Shutdown();
  server->Wait();
  EXPECT_EQ((counts[{"Health/Check", grpc::StatusCode::OK}]), 2);
  EXPECT_EQ((counts[{"Health/Check", grpc::StatusCode::NOT_FOUND}]), 1);
  EXPECT_LE(counts.size(), 3u) << "names of a client's choice are not kept";
  EXPECT_GT(longest, absl::ZeroDuration());
  EXPECT_LT(longest, absl::Minutes(1));
  EXPECT_TRUE(RemoveTree(dir).ok());
}

}  // namespace
}  // namespace kapsule::snapshotter
