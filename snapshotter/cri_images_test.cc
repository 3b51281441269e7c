#include "snapshotter/cri_images.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <absl/synchronization/notification.h>
#include <absl/time/clock.h>

#include <thread>

#include "core/containerd/testing.h"
#include "core/registry/test_registry.h"
#include "snapshotter/test_support.h"

namespace kapsule::snapshotter {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

grpc::ByteBuffer Buffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

std::string Bytes(const grpc::ByteBuffer& buffer) {
  grpc::Slice slice;
  EXPECT_TRUE(buffer.DumpToSingleSlice(&slice).ok());
  return {reinterpret_cast<const char*>(slice.begin()), slice.size()};
}

std::shared_ptr<grpc::Channel> Dial(const std::filesystem::path& socket) {
  return grpc::CreateChannel("unix:" + socket.string(), grpc::InsecureChannelCredentials());
}

std::unique_ptr<grpc::Server> Serve(const std::filesystem::path& socket,
                                    grpc::CallbackGenericService& service) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("unix:" + socket.string(), grpc::InsecureServerCredentials());
  builder.RegisterCallbackGenericService(&service);
  return builder.BuildAndStart();
}

// One call with one request, and all answers to it.
struct Call {
  Call(const std::filesystem::path& socket, const std::string& method, const std::string& request)
      : stub(Dial(socket)), stream(stub.PrepareCall(&context, method, &queue)) {
    stream->StartCall(nullptr);
    Next();
    stream->WriteLast(Buffer(request), {}, nullptr);
    Next();
  }
  bool Next() {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  }
  grpc::Status Finish() {
    grpc::ByteBuffer answer;
    for (stream->Read(&answer, nullptr); Next(); stream->Read(&answer, nullptr))
      answers.push_back(Bytes(answer));
    grpc::Status status;
    stream->Finish(&status, nullptr);
    Next();
    return status;
  }

  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  grpc::GenericStub stub;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream;
  std::vector<std::string> answers;
};

// Stands for a later containerd: methods and messages that we do not know.
class Future final : public grpc::CallbackGenericService {
 public:
  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override {
    return new Reactor(*this, context);
  }

  absl::Notification hangs, cancelled;
  std::string method, request, trace;
  bool had_deadline = false;

 private:
  class Reactor final : public grpc::ServerGenericBidiReactor {
   public:
    Reactor(Future& future, grpc::GenericCallbackServerContext* context) : future_(future) {
      future_.method = context->method();
      future_.had_deadline =
          context->deadline() < std::chrono::system_clock::now() + std::chrono::hours(1);
      const auto trace = context->client_metadata().find("traceparent");
      if (trace != context->client_metadata().end())
        future_.trace = {trace->second.data(), trace->second.size()};
      StartRead(&request_);
    }
    void OnReadDone(bool ok) override {
      if (!ok) return;  // cancelled
      future_.request = Bytes(request_);
      if (future_.method.ends_with("Hang")) return future_.hangs.Notify();
      OnWriteDone(true);
    }
    void OnWriteDone(bool ok) override {
      answer_ = Buffer("answer " + std::to_string(++answers_));
      if (ok && answers_ <= 3) return StartWrite(&answer_);
      Finish({grpc::StatusCode::DATA_LOSS, "what happened", "details"});
    }
    void OnCancel() override {
      future_.cancelled.Notify();
      Finish(grpc::Status::CANCELLED);
    }
    void OnDone() override { delete this; }

   private:
    Future& future_;
    grpc::ByteBuffer request_, answer_;
    int answers_ = 0;
  };
};

class CriForwardTest : public testing::Test {
 protected:
  CriForwardTest()
      : upstream_(Serve(folder_ / "up", future_)), server_(Serve(folder_ / "down", images_)) {}
  std::filesystem::path down() const { return folder_ / "down"; }

  TempDir folder_;
  Future future_;
  CriImages images_{folder_ / "up"};
  std::unique_ptr<grpc::Server> upstream_, server_;
};

TEST_F(CriForwardTest, KeepsWhatItDoesNotKnow) {
  const std::string bytes = "\xff\x01 no protobuf at all";
  Call call(down(), "/runtime.v1.ImageService/StreamFutures", bytes);
  const grpc::Status status = call.Finish();
  EXPECT_EQ(future_.method, "/runtime.v1.ImageService/StreamFutures");
  EXPECT_EQ(future_.request, bytes);
  EXPECT_THAT(call.answers, ElementsAre("answer 1", "answer 2", "answer 3"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_EQ(status.error_message(), "what happened");
  EXPECT_EQ(status.error_details(), "details");
}

TEST_F(CriForwardTest, APullThatCannotBeReadIsPassedOnToo) {
  Call call(down(), "/runtime.v1.ImageService/PullImage", "\xff\xff");
  EXPECT_EQ(call.Finish().error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_EQ(future_.request, "\xff\xff");
}

TEST_F(CriForwardTest, PassesMetadataDeadlineAndCancellationOn) {
  grpc::GenericStub stub(Dial(down()));
  grpc::ClientContext context;
  context.AddMetadata("traceparent", "00-1-2-01");
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  grpc::CompletionQueue queue;
  const auto call =
      stub.PrepareUnaryCall(&context, "/runtime.v1.ImageService/Hang", Buffer("x"), &queue);
  call->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->Finish(&answer, &status, nullptr);
  std::thread canceller([&] {
    EXPECT_TRUE(future_.hangs.WaitForNotificationWithTimeout(absl::Seconds(30)));
    context.TryCancel();
  });
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  canceller.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(future_.cancelled.WaitForNotificationWithTimeout(absl::Seconds(10)));
  EXPECT_EQ(future_.trace, "00-1-2-01");
  EXPECT_TRUE(future_.had_deadline);
}

TEST_F(CriForwardTest, OtherServicesAreNotServed) {
  Call call(down(), "/runtime.v1.RuntimeService/Version", "");
  EXPECT_EQ(call.Finish().error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(future_.method, "");
}

TEST_F(CriForwardTest, ServesAgainSoonAfterContainerdCameBack) {
  upstream_->Shutdown(std::chrono::system_clock::now());
  upstream_ = nullptr;
  const auto code = [this] {
    return Call(down(), "/runtime.v1.ImageService/ListImages", "").Finish().error_code();
  };
  EXPECT_EQ(code(), grpc::StatusCode::UNAVAILABLE);
  Future another;
  upstream_ = Serve(folder_ / "up", another);
  for (int i = 0; i < 100 && code() == grpc::StatusCode::UNAVAILABLE; ++i)
    absl::SleepFor(absl::Milliseconds(100));
  EXPECT_EQ(code(), grpc::StatusCode::DATA_LOSS);
  upstream_ = nullptr;
}

TEST_F(CriForwardTest, EndsWhileACallIsUnderWay) {
  Call call(down(), "/runtime.v1.ImageService/Hang", "");
  std::thread finish([&] { EXPECT_FALSE(call.Finish().ok()); });
  server_->Shutdown(std::chrono::system_clock::now());
  server_ = nullptr;
  finish.join();
}

// Debian's containerd with its CRI plugin, everything in `folder`.
class Containerd {
 public:
  explicit Containerd(const std::filesystem::path& folder) : folder_(folder) {
    Write(folder / "config.toml", fmt::format(R"(version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{0}/containerd.sock"
[ttrpc]
  address = "{0}/ttrpc.sock"
[plugins."io.containerd.grpc.v1.cri".cni]
  conf_dir = "{0}"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
)",
                                              folder.string()));
    const std::string config = folder / "config.toml", log = folder / "log";
    const char* const argv[] = {"containerd", "--config", config.c_str(), nullptr};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    EXPECT_EQ(
        posix_spawnp(&pid_, argv[0], &actions, nullptr, const_cast<char* const*>(argv), environ),
        0);
    posix_spawn_file_actions_destroy(&actions);
  }
  ~Containerd() {
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
  }
  std::filesystem::path socket() const { return folder_ / "containerd.sock"; }

 private:
  const std::filesystem::path folder_;
  pid_t pid_ = -1;
};

class CriImagesTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(server_, nullptr);
    for (int i = 0; !List().ok(); ++i) {
      ASSERT_LT(i, 300) << Read(folder_ / "log");
      absl::SleepFor(absl::Milliseconds(100));
    }
  }
  // An image on a registry with a password.
  void Push() {
    auto registry = registry::TestRegistry::Start(registry::TestRegistry::Access::kPassword);
    auto publisher = containerd::TestContainerd::Start();
    ASSERT_TRUE(registry.ok() && publisher.ok()) << registry.status() << publisher.status();
    registry_ = *std::move(registry);
    image_ = registry_->host() + "/acme/x:1";
    ASSERT_TRUE(containerd::ImportImage(**publisher, "default", image_,
                                        {{.bytes = containerd::OneFileTar("f", "x")}})
                    .ok());
    const absl::Status pushed =
        (*publisher)
            ->Ctr({"images", "push", "--plain-http", "--user",
                   fmt::format("{}:{}", registry_->kUser, registry_->kPassword), image_});
    ASSERT_TRUE(pushed.ok()) << pushed;
  }

  template <typename Response>
  absl::StatusOr<Response> Ask(const std::string& method,
                               const google::protobuf::MessageLite& request) {
    Call call(folder_ / "down", "/runtime.v1.ImageService/" + method, request.SerializeAsString());
    const grpc::Status status = call.Finish();
    if (!status.ok()) return Internal("{}", status.error_message());
    Response response;
    EXPECT_EQ(call.answers.size(), 1u);
    EXPECT_TRUE(response.ParseFromString(call.answers.at(0)));
    return response;
  }
  absl::StatusOr<runtime::v1::ListImagesResponse> List() {
    return Ask<runtime::v1::ListImagesResponse>("ListImages", runtime::v1::ListImagesRequest());
  }
  absl::Status Pull(const std::string& password) {
    runtime::v1::PullImageRequest request;
    request.mutable_image()->set_image(image_);
    if (!password.empty()) {
      request.mutable_auth()->set_username(registry_->kUser);
      request.mutable_auth()->set_password(password);
    }
    return Ask<runtime::v1::PullImageResponse>("PullImage", request).status();
  }
  std::string Found() {
    const std::optional<PullCredentials> found = images_.Find(image_);
    return found ? found->username + "@" + found->place + " " + std::string(found->password.text())
                 : "nobody";
  }

  TempDir folder_;
  Containerd containerd_{folder_.path()};
  CriImages images_{containerd_.socket()};
  std::unique_ptr<grpc::Server> server_ = Serve(folder_ / "down", images_);
  std::unique_ptr<registry::TestRegistry> registry_;
  std::string image_;
};

TEST_F(CriImagesTest, RemembersWhomContainerdPulledAs) {
  Push();
  EXPECT_FALSE(Pull("").ok());
  EXPECT_EQ(Found(), "nobody");
  EXPECT_FALSE(Pull("wrong").ok());
  EXPECT_EQ(Found(), "nobody");
  const std::string right =
      fmt::format("{}@{}/acme/x {}", registry_->kUser, registry_->host(), registry_->kPassword);
  const absl::Status pulled = Pull(registry_->kPassword);
  ASSERT_TRUE(pulled.ok()) << pulled;
  EXPECT_EQ(Found(), right);
  EXPECT_THAT(Message(Pull("wrong")), HasSubstr("pull"));
  EXPECT_EQ(Found(), right);
  EXPECT_FALSE(images_.Find("not a name").has_value());

  const auto listed = List();
  ASSERT_TRUE(listed.ok()) << listed.status();
  ASSERT_EQ(listed->images_size(), 1);
  EXPECT_THAT(listed->images(0).repo_tags(), ElementsAre(image_));
}

TEST_F(CriImagesTest, ErrorsAreContainerdsOwn) {
  const std::string request("\n\0", 2);  // an image without a name
  Call through(folder_ / "down", "/runtime.v1.ImageService/PullImage", request);
  Call direct(containerd_.socket(), "/runtime.v1.ImageService/PullImage", request);
  const grpc::Status ours = through.Finish(), theirs = direct.Finish();
  EXPECT_FALSE(ours.ok());
  EXPECT_EQ(ours.error_code(), theirs.error_code());
  EXPECT_EQ(ours.error_message(), theirs.error_message());
}

}  // namespace
}  // namespace kapsule::snapshotter
