#include "snapshotter/fuse/control_server.h"

#include <absl/time/clock.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <new>

#include "core/base/log.h"

namespace kapsule::fuse {
namespace {

constexpr unsigned kKeyedThreads = 4, kPlainThreads = 2, kRemoteThreads = 4;
constexpr size_t kMaxWaiting = 1024;

absl::StatusOr<UniqueFd> TerminationSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  UniqueFd fd(signalfd(-1, &signals, SFD_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, "signalfd");
  return fd;
}

absl::Time DeadlineOf(uint32_t timeout_ms) { return absl::Now() + absl::Milliseconds(timeout_ms); }

oci::Digest DigestOf(const std::string& hex) {  // checked by CheckRequest()
  return oci::Digest::Parse("sha256:" + hex).value_or(oci::Digest());
}

// The id of the request that comes next, 0 where it has none. Known also where
// there is no room for the descriptors beside it.
uint64_t NextId(int socket) {
  std::string bytes(control::kMaxMessageBytes, '\0');
  ssize_t n;
  do {
    n = recv(socket, bytes.data(), bytes.size(), MSG_PEEK | MSG_TRUNC);
  } while (n < 0 && errno == EINTR);
  if (n <= 0 || static_cast<size_t>(n) > bytes.size()) return 0;
  bytes.resize(static_cast<size_t>(n));
  v1::DataPlaneRequest request;
  return request.ParseFromString(bytes) ? request.id() : 0;
}

}  // namespace

ControlServer::ControlServer(Options options, std::unique_ptr<RequestMemory> memory,
                             std::unique_ptr<ReadEngine> engine,
                             std::unique_ptr<WorkerPool> workers)
    : options_(std::move(options)),
      memory_(std::move(memory)),
      engine_(std::move(engine)),
      workers_(std::move(workers)),
      keyed_(kMaxWaiting),
      plain_(kMaxWaiting),
      remote_(kMaxWaiting),
      chores_(kMaxWaiting),
      views_(*memory_),
      held_(*options_.holder, views_, chores_),
      fetch_(options_.fetch),
      opener_(views_, held_, fetch_, options_.keyprovider, engine_->shared()),
      keys_(opener_, keyed_, plain_, chores_, options_.key_grace),
      restorer_(*options_.holder, keys_),
      lost_fd_(eventfd(0, EFD_CLOEXEC)) {
  views_.OnForgotten([this](const std::string& name) { held_.Forget(name); });
}

absl::Status ControlServer::Run() {
  if (!lost_fd_.valid()) return ResourceExhausted("no eventfd");
  ASSIGN_OR_RETURN(const UniqueFd signals, TerminationSignals());
  RETURN_IF_ERROR(keyed_.Start(kKeyedThreads));
  RETURN_IF_ERROR(plain_.Start(kPlainThreads));
  RETURN_IF_ERROR(remote_.Start(kRemoteThreads));
  RETURN_IF_ERROR(chores_.Start(1));
  while (control_open_ || state_ == State::kServing) {
    pollfd fds[] = {{control_open_ ? options_.control.get() : -1, POLLIN, 0},
                    {signals.get(), POLLIN, 0},
                    {lost_fd_.get(), POLLIN, 0}};
    if (poll(fds, std::size(fds), -1) < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "poll");
    }
    if (fds[1].revents != 0) return absl::OkStatus();
    if (fds[0].revents != 0) RETURN_IF_ERROR(HandleControl());
    RETURN_IF_ERROR(failure_);
    if (fds[2].revents != 0) {
      absl::MutexLock lock(&mu_);
      return lost_;
    }
  }
  return absl::OkStatus();
}

absl::Status ControlServer::HandleControl() {
  const absl::Status status = HandlePacket();
  if (status.ok()) return status;
  const bool closed = absl::IsUnavailable(status);
  if (state_ != State::kServing && !closed) return status;
  control_open_ = false;
  if (state_ == State::kServing)
    log::warn("serving on without control: {}",
              closed ? "kapsule-snapshotter is gone" : Describe(status));
  shutdown(options_.control.get(), SHUT_RDWR);
  return absl::OkStatus();
}

absl::Status ControlServer::HandlePacket() {
  const uint64_t id = NextId(options_.control.get());
  absl::StatusOr<control::ReceivedRequest> request =
      control::ReceiveRequest(options_.control.get());
  if (absl::IsInvalidArgument(request.status()) && id != 0) {
    Answer(control::MakeReply(
        id, ResourceExhausted("not all descriptors of the request could be received: kapsule-fuse "
                              "has too many open, or they are more than a request has")));
    return absl::OkStatus();
  }
  if (!request.ok()) return request.status();
  if (id == 0) return InvalidArgument("a control request without id");
  const absl::Status status = control::CheckRequest(request->message, request->fds.size());
  if (status.ok()) {
    Dispatch(std::move(*request));
  } else {
    Answer(control::MakeReply(id, status));
  }
  return absl::OkStatus();
}

void ControlServer::Dispatch(control::ReceivedRequest request) {
  const uint64_t id = request.message.id();
  switch (request.message.request_case()) {
    case v1::DataPlaneRequest::kPrepare:
      return Prepare(id, request.message.prepare().timeout_ms());
    case v1::DataPlaneRequest::kServe:
      return Serve(id);
    default:
      break;
  }
  if (state_ != State::kServing)
    return Answer(control::MakeReply(id, FailedPrecondition("nothing is served yet")));
  switch (request.message.request_case()) {
    case v1::DataPlaneRequest::kOpen:
      return Open(request.message, std::move(request.fds));
    case v1::DataPlaneRequest::kAuthorise:
      return Authorise(request.message, std::move(request.fds[0]));
    case v1::DataPlaneRequest::kClose:
      views_.Withdraw(request.message.close().digest());
      return Answer(control::MakeReply(id, absl::OkStatus()));
    case v1::DataPlaneRequest::kUseFetcher:
      return Answer(control::MakeReply(id, UseFetcher(std::move(request.fds[0]))));
    case v1::DataPlaneRequest::kUseFile:
      return UseFile(request.message, std::move(request.fds[0]));
    case v1::DataPlaneRequest::kUseLocal:
      return UseLocal(request.message, std::move(request.fds[0]));
    default:  // CheckRequest() takes no other
      return;
  }
}

void ControlServer::Open(const v1::DataPlaneRequest& request, std::vector<UniqueFd> fds) {
  const v1::OpenRequest& open = request.open();
  struct Call {
    Call(ViewTable& views, const std::string& name) : opening(views, name) {}
    const ViewTable::Opening opening;  // from now on, so that a Close after this finds it
    LayerOpener::Layer layer;
  };
  auto call = std::make_shared<Call>(views_, open.digest());
  call->layer = {.digest = DigestOf(open.digest()),
                 .size = open.size(),
                 .encrypted = open.encrypted(),
                 .remote = open.remote(),
                 .blob = std::move(fds[0]),
                 .record = std::move(fds[1])};
  const absl::Time deadline = DeadlineOf(open.timeout_ms());
  TaskPool& pool = open.remote() ? remote_ : open.encrypted() ? keyed_ : plain_;
  Enqueue(pool, open.digest(), request.id(), [this, call, deadline] {
    const std::string digest = call->layer.digest.text();
    const auto size = opener_.Open(call->opening, std::move(call->layer), deadline);
    v1::DataPlaneReply reply =
        control::MakeReply(0, Annotate(size.status(), "open layer " + digest));
    if (size.ok()) reply.set_view_size(*size);
    return reply;
  });
}

void ControlServer::Authorise(const v1::DataPlaneRequest& request, UniqueFd annotations) {
  const oci::Digest digest = DigestOf(request.authorise().digest());
  auto fd = std::make_shared<UniqueFd>(std::move(annotations));
  const absl::Time deadline = DeadlineOf(request.authorise().timeout_ms());
  Enqueue(keyed_, digest.hex(), request.id(), [this, digest, fd, deadline] {
    const absl::Status status = opener_.Authorise(digest, std::move(*fd), deadline);
    return control::MakeReply(0, Annotate(status, "authorise layer " + digest.text()));
  });
}

// Not after the view's key has come: it is asked again until then.
void ControlServer::UseFile(const v1::DataPlaneRequest& request, UniqueFd blob) {
  const oci::Digest digest = DigestOf(request.use_file().digest());
  auto fd = std::make_shared<UniqueFd>(std::move(blob));
  EnqueueNow(plain_, request.id(), [this, digest, fd] {
    const absl::Status status = opener_.UseFile(digest, *fd);
    return control::MakeReply(0, Annotate(status, "read layer " + digest.text() + " from afar"));
  });
}

void ControlServer::UseLocal(const v1::DataPlaneRequest& request, UniqueFd blob) {
  const oci::Digest digest = DigestOf(request.use_local().digest());
  auto fd = std::make_shared<UniqueFd>(std::move(blob));
  Enqueue(plain_, digest.hex(), request.id(), [this, digest, fd] {
    const absl::Status status = opener_.UseLocal(digest, std::move(*fd));
    return control::MakeReply(0, Annotate(status, "read layer " + digest.text() + " here"));
  });
}

void ControlServer::Enqueue(TaskPool& pool, const std::string& name, uint64_t id,
                            std::function<v1::DataPlaneReply()> task) {
  const ViewPtr view = views_.Known(name);
  if (view == nullptr) return EnqueueNow(pool, id, std::move(task));
  // Not in a thread of the pool, which the key's coming needs.
  view->WhenDecided([this, &pool, id, task = std::move(task)] { EnqueueNow(pool, id, task); });
}

void ControlServer::EnqueueNow(TaskPool& pool, uint64_t id,
                               std::function<v1::DataPlaneReply()> task) {
  const bool added = pool.Add([this, id, task = std::move(task)] {
    v1::DataPlaneReply reply;
    try {
      reply = task();
    } catch (const std::bad_alloc&) {
      reply = control::MakeReply(0, ResourceExhausted("no memory to open the layer"));
    }
    reply.set_id(id);
    Answer(reply);
  });
  if (!added)
    Answer(control::MakeReply(id, ResourceExhausted("{} layers wait to be opened", kMaxWaiting)));
}

void ControlServer::Answer(const v1::DataPlaneReply& reply) {
  const absl::Status status = control::SendReply(options_.control.get(), reply);
  if (!status.ok()) log::debug("answer to the snapshotter: {}", Describe(status));
}

void ControlServer::ConnectionLost(const absl::Status& why) {
  {
    absl::MutexLock lock(&mu_);
    if (lost_.ok()) lost_ = why;
  }
  const uint64_t one = 1;
  if (write(lost_fd_.get(), &one, sizeof(one)) < 0) log::error("write an eventfd failed");
}

}  // namespace kapsule::fuse
