#include "core/keyprovider/grpc_server.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <chrono>

#include "core/base/json.h"
#include "core/daemon/listener.h"
#include "kapsule/v1/keys.grpc.pb.h"
#include "ocicrypt/keyprovider.grpc.pb.h"

namespace kapsule::keyprovider {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// The bodies that a stock tool sent: to wrap, to unwrap, and to unwrap with the
// user's own keys along.
std::string Captured(int index) {
  const std::string file = TEST_SOURCE_DIR "/testdata/ocicrypt_requests.json";
  const Json json = ParseJson(ReadFile(file, 1 << 20).value(), 1 << 20).value();
  return json["requests"][static_cast<size_t>(index)]["json"].get<std::string>();
}

// A server on a socket, whose unwrappers give fixed bytes for layer "good" and
// for the captured packets.
class GrpcServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
    const auto unwrap = [](const oci::Annotations& annotations,
                           const PeerCredentials& peer) -> absl::StatusOr<UnwrappedLayer> {
      if (peer.uid != getuid() || peer.pid != getpid()) return PermissionDenied("uid");
      if (annotations.count("good") == 0) return NotFound("no key");
      crypt::LayerKey key{Secret::CopyOf(std::string(32, 'k')),
                          Secret::CopyOf(std::string(16, 'n'))};
      return UnwrappedLayer{std::move(key), oci::IndexRef{1, 2, 256, oci::Digest::Of({})}};
    };
    const auto unwrap_packet = [](std::string_view packet,
                                  const PeerCredentials& peer) -> absl::StatusOr<Secret> {
      if (peer.uid != getuid() || peer.pid != getpid()) return PermissionDenied("uid");
      if (packet.substr(0, 9) != "{\"data\":\"") return NotFound("no key for it");
      return Secret::CopyOf(std::string("{\"\xff", 3));
    };
    server_ = GrpcServer::Start(unwrap, unwrap_packet).value();
    listener_ = daemon::Listener::Start(folder_ + "/keys.sock", SOCK_STREAM, 0600,
                                        [this](UniqueFd fd, const PeerCredentials& peer) {
                                          adopted_ += server_->Adopt(std::move(fd), peer).ok();
                                        })
                    .value();
  }
  void TearDown() override {
    listener_.reset();
    server_.reset();
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }

  std::shared_ptr<grpc::Channel> Channel() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
    return grpc::CreateCustomChannel("unix:" + folder_ + "/keys.sock",
                                     grpc::InsecureChannelCredentials(), arguments);
  }
  std::unique_ptr<v1::Keys::Stub> Connect() { return v1::Keys::NewStub(Channel()); }
  static grpc::Status Ask(v1::Keys::Stub& stub, const std::string& annotation,
                          v1::UnwrapResponse* response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    v1::UnwrapRequest request;
    (*request.mutable_annotations())[annotation] = "";
    return stub.Unwrap(&context, request, response);
  }

  // ocicrypt's "UnWrapKey", or "WrapKey"; the answer's JSON in `*answer`.
  grpc::Status AskAsOcicrypt(const std::string& json, std::string* answer, bool wrap = false) {
    const auto stub = ::keyprovider::KeyProviderService::NewStub(Channel());
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    ::keyprovider::KeyWrapProtocolInput request;
    request.set_json(json);
    ::keyprovider::KeyWrapProtocolOutput response;
    const grpc::Status status = wrap ? stub->WrapKey(&context, request, &response)
                                     : stub->UnWrapKey(&context, request, &response);
    *answer = response.json();
    return status;
  }

  std::string folder_ = "/tmp/kapsule-grpc-XXXXXX";
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<daemon::Listener> listener_;
  std::atomic<int> adopted_ = 0;
};

TEST_F(GrpcServerTest, AKnownPeerGetsKeyNonceAndIndex) {
  v1::UnwrapResponse response;
  const grpc::Status status = Ask(*Connect(), "good", &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.key(), std::string(32, 'k'));
  EXPECT_EQ(response.nonce(), std::string(16, 'n'));
  EXPECT_EQ(oci::IndexRef::FromJson(response.index()).value().offset, 2u);
}

TEST_F(GrpcServerTest, ErrorsKeepTheirCode) {
  v1::UnwrapResponse response;
  const grpc::Status status = Ask(*Connect(), "bad", &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message(), "no key");
}

TEST_F(GrpcServerTest, ConnectionsOfAUserAreBoundedAndPlacesComeFree) {
  std::vector<UniqueFd> idle;
  for (int i = 0; i < 40; ++i)
    idle.push_back(ConnectUnix(folder_ + "/keys.sock", SOCK_STREAM).value());
  v1::UnwrapResponse response;
  EXPECT_FALSE(Ask(*Connect(), "good", &response).ok());
  EXPECT_EQ(adopted_, 32);
  idle.clear();
  EXPECT_TRUE(Ask(*Connect(), "good", &response).ok());
}

TEST_F(GrpcServerTest, BytesThatAreNoGrpcHarmNobody) {
  const UniqueFd connection = ConnectUnix(folder_ + "/keys.sock", SOCK_STREAM).value();
  ASSERT_TRUE(WriteAll(connection.get(), AsBytes(std::string(1000, 'x'))).ok());
  v1::UnwrapResponse response;
  EXPECT_TRUE(Ask(*Connect(), "good", &response).ok());
}

TEST_F(GrpcServerTest, StockRequestsToUnwrapAreAnsweredWithNumbers) {
  for (const int index : {1, 2}) {
    std::string answer;
    const grpc::Status status = AskAsOcicrypt(Captured(index), &answer);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(answer, R"({"keyunwrapresults":{"optsdata":[123,34,255]}})");
  }
}

TEST_F(GrpcServerTest, RequestsToWrapAreSentToKapsuleCtl) {
  std::string answer;
  const grpc::Status status = AskAsOcicrypt(Captured(0), &answer, /*wrap=*/true);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status.error_message(), HasSubstr("kapsule-ctl"));
}

TEST_F(GrpcServerTest, MalformedOcicryptRequestsAreInvalidAndNotQuoted) {
  const std::string good = Captured(2);
  std::string answer;
  for (size_t size = 0; size < good.size(); ++size)
    EXPECT_EQ(AskAsOcicrypt(good.substr(0, size), &answer).error_code(),
              grpc::StatusCode::INVALID_ARGUMENT)
        << size;
  std::string crowded = good.substr(0, good.size() - 1);
  for (int i = 0; i < 1100; ++i) crowded += fmt::format(",\"{}\":0", i);
  for (const std::string& bad :
       {Captured(0), good + good, crowded + "}", std::string("[]"), std::string("7"),
        std::string(R"({"op":"keyunwrap"})"),
        std::string(R"({"op":"keyunwrap","keyunwrapparams":{"annotation":null}})"),
        std::string(R"({"op":"keyunwrap","keyunwrapparams":{"annotation":"%hidden%"}})"),
        std::string(R"({"op":"keyunwrap","hidden":1,"hidden":2})")}) {
    const grpc::Status status = AskAsOcicrypt(bad, &answer);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << bad.substr(0, 80);
    EXPECT_THAT(status.error_message(), Not(HasSubstr("hidden")));
    EXPECT_TRUE(answer.empty());
  }
}

TEST_F(GrpcServerTest, AnOcicryptRequestHasAtMostAMebibyte) {
  std::string answer, request = Captured(1);
  request.resize(1 << 20, ' ');
  EXPECT_TRUE(AskAsOcicrypt(request, &answer).ok());
  EXPECT_EQ(AskAsOcicrypt(request + " ", &answer).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace kapsule::keyprovider
