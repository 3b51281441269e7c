#include "snapshotter/cri_images.h"

#include <grpcpp/grpcpp.h>

#include <memory>
#include <new>

#include "core/base/log.h"

namespace kapsule::snapshotter {
namespace {

constexpr std::string_view kService = "/runtime.v1.ImageService/";
constexpr std::string_view kPullImage = "/runtime.v1.ImageService/PullImage";
constexpr int kMaxMessageBytes = 16 << 20;  // kubelet's limit, and containerd's

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(kMaxMessageBytes);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  return grpc::CreateCustomChannel("unix://" + address, grpc::InsecureChannelCredentials(), args);
}

bool ParsePull(const grpc::ByteBuffer& bytes, runtime::v1::PullImageRequest& request) {
  grpc::Slice slice;
  return bytes.DumpToSingleSlice(&slice).ok() &&
         request.ParseFromArray(slice.begin(), static_cast<int>(slice.size()));
}

// A pull that containerd will refuse, or whose credentials cannot be read, is
// passed on all the same: nullopt.
std::optional<uint64_t> BeginPull(const grpc::ByteBuffer& bytes, PullMemory& pulls) try {
  runtime::v1::PullImageRequest request;
  if (!ParsePull(bytes, request)) return std::nullopt;
  const auto image = oci::Reference::Parse(request.image().image());
  if (!image.ok()) return std::nullopt;
  auto credentials = TakeCredentials(*request.mutable_auth(), *image);
  if (!credentials.ok()) {
    log::warn("pull of {}: {}", image->text(), Describe(credentials.status()));
    return std::nullopt;
  }
  return pulls.Begin(*image, *std::move(credentials));
} catch (const std::bad_alloc&) {
  return std::nullopt;
}

// Tracing and the like; what belongs to the connection is gRPC's own.
void CopyMetadata(const grpc::CallbackServerContext& from, grpc::ClientContext& to) {
  for (const auto& [key, value] : from.client_metadata()) {
    if (key != "user-agent" && !key.starts_with("grpc-"))
      to.AddMetadata({key.data(), key.size()}, {value.data(), value.size()});
  }
}

// One call: one request, then answers until containerd ends it. Deletes itself.
class Forward final : public grpc::ServerGenericBidiReactor {
 public:
  Forward(const grpc::GenericCallbackServerContext& context, grpc::GenericStub& containerd,
          PullMemory& pulls)
      : method_(context.method()),
        containerd_(containerd),
        pulls_(pulls),
        // Ends with its caller, and at the caller's deadline.
        context_(grpc::ClientContext::FromCallbackServerContext(context)),
        upstream_(*this) {
    CopyMetadata(context, *context_);
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) return Finish({grpc::StatusCode::INVALID_ARGUMENT, "a call without a request"});
    if (method_ == kPullImage) pull_ = BeginPull(request_, pulls_);
    containerd_.PrepareBidiStreamingCall(context_.get(), method_, {}, &upstream_);
    upstream_.StartWriteLast(&request_, {});
    upstream_.StartRead(&answer_);
    upstream_.AddHold();  // until the last answer has been passed on: OnWriteDone() reads
    upstream_.StartCall();
  }
  void OnWriteDone(bool ok) override {
    if (ok) return upstream_.StartRead(&answer_);
    context_->TryCancel();
    upstream_.RemoveHold();
  }
  void OnDone() override { delete this; }

 private:
  struct Upstream final : grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
    explicit Upstream(Forward& of) : forward(of) {}
    void OnReadDone(bool ok) override {
      if (ok) return forward.StartWrite(&forward.answer_);
      RemoveHold();
    }
    void OnDone(const grpc::Status& status) override { forward.End(status); }
    Forward& forward;
  };

  void End(const grpc::Status& status) {
    if (pull_) pulls_.End(*pull_, status.ok());
    Finish(status);
  }

  const std::string method_;
  grpc::GenericStub& containerd_;
  PullMemory& pulls_;
  const std::unique_ptr<grpc::ClientContext> context_;
  grpc::ByteBuffer request_, answer_;
  std::optional<uint64_t> pull_;
  Upstream upstream_;
};

class Refusal final : public grpc::ServerGenericBidiReactor {
 public:
  explicit Refusal(const std::string& method) {
    Finish({grpc::StatusCode::UNIMPLEMENTED, method + " is not served here"});
  }
  void OnDone() override { delete this; }
};

}  // namespace

CriImages::CriImages(const std::filesystem::path& containerd_address)
    : containerd_(Connect(containerd_address.string())) {}

grpc::ServerGenericBidiReactor* CriImages::CreateReactor(
    grpc::GenericCallbackServerContext* context) {
  if (!context->method().starts_with(kService)) return new Refusal(context->method());
  return new Forward(*context, containerd_, pulls_);
}

std::optional<PullCredentials> CriImages::Find(const std::string& image) {
  const auto reference = oci::Reference::Parse(image);
  if (!reference.ok()) return std::nullopt;
  return pulls_.Find(*reference);
}

}  // namespace kapsule::snapshotter
