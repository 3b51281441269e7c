#include "snapshotter/fuse/control_server.h"

#include <absl/time/clock.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <new>

#include "core/base/log.h"

namespace kapsule::fuse {
namespace {

constexpr unsigned kKeyedThreads = 4, kPlainThreads = 2;
constexpr size_t kMaxWaiting = 1024;

absl::Status CheckFuseDevice(int fd) {
  struct stat st;
  if (fstat(fd, &st) != 0) return ErrnoStatus(errno, "stat /dev/fuse");
  if (!S_ISCHR(st.st_mode) || st.st_rdev != makedev(10, 229))
    return InvalidArgument("the passed descriptor is not /dev/fuse");
  return absl::OkStatus();
}

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

}  // namespace

ControlServer::ControlServer(UniqueFd control, std::filesystem::path keyprovider,
                             std::unique_ptr<WorkerPool> workers)
    : control_(std::move(control)),
      workers_(std::move(workers)),
      opener_(views_, std::move(keyprovider)),
      keyed_(kMaxWaiting),
      plain_(kMaxWaiting),
      lost_fd_(eventfd(0, EFD_CLOEXEC)) {}

absl::Status ControlServer::Run() {
  if (!lost_fd_.valid()) return ResourceExhausted("no eventfd");
  ASSIGN_OR_RETURN(const UniqueFd signals, TerminationSignals());
  RETURN_IF_ERROR(keyed_.Start(kKeyedThreads));
  RETURN_IF_ERROR(plain_.Start(kPlainThreads));
  for (;;) {
    pollfd fds[] = {
        {control_.get(), POLLIN, 0}, {signals.get(), POLLIN, 0}, {lost_fd_.get(), POLLIN, 0}};
    if (poll(fds, std::size(fds), -1) < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "poll");
    }
    if (fds[1].revents != 0) return absl::OkStatus();
    if (fds[0].revents != 0) {
      const absl::Status status = HandlePacket();
      if (absl::IsUnavailable(status)) return absl::OkStatus();
      RETURN_IF_ERROR(status);
    }
    if (fds[2].revents != 0) {
      absl::MutexLock lock(&mu_);
      return lost_;
    }
  }
}

absl::Status ControlServer::HandlePacket() {
  absl::StatusOr<control::ReceivedRequest> request = control::ReceiveRequest(control_.get());
  if (!request.ok()) return request.status();
  const uint64_t id = request->message.id();
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
    case v1::DataPlaneRequest::kServe:
      return Serve(id, std::move(request.fds[0]));
    case v1::DataPlaneRequest::kOpen:
      return Open(request.message, std::move(request.fds));
    case v1::DataPlaneRequest::kAuthorise:
      return Authorise(request.message, std::move(request.fds[0]));
    case v1::DataPlaneRequest::kClose:
      views_.Withdraw(request.message.close().digest());
      return Answer(control::MakeReply(id, absl::OkStatus()));
    case v1::DataPlaneRequest::REQUEST_NOT_SET:
      return;
  }
}

void ControlServer::Serve(uint64_t id, UniqueFd fuse) {
  absl::Status status = CheckFuseDevice(fuse.get());
  if (status.ok() && serving_) status = FailedPrecondition("a FUSE connection is being served");
  if (status.ok()) {
    serving_ = true;
    status = workers_->Start(std::move(fuse), session_,
                             {[this, id] { Answer(control::MakeReply(id, absl::OkStatus())); },
                              [this](const absl::Status& why) { ConnectionLost(why); }});
  }
  if (!status.ok()) Answer(control::MakeReply(id, status));
}

void ControlServer::Open(const v1::DataPlaneRequest& request, std::vector<UniqueFd> fds) {
  const v1::OpenRequest& open = request.open();
  struct Call {
    Call(ViewTable& views, const std::string& name) : opening(views, name) {}
    const ViewTable::Opening opening;  // from now on, so that a Close after this finds it
    LayerOpener::Layer layer;
  };
  auto call = std::make_shared<Call>(views_, open.digest());
  call->layer = {DigestOf(open.digest()), open.size(), open.encrypted(), std::move(fds[0]),
                 std::move(fds[1])};
  const absl::Time deadline = DeadlineOf(open.timeout_ms());
  Enqueue(open.encrypted() ? keyed_ : plain_, request.id(), [this, call, deadline] {
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
  Enqueue(keyed_, request.id(), [this, digest, fd, deadline] {
    const absl::Status status = opener_.Authorise(digest, std::move(*fd), deadline);
    return control::MakeReply(0, Annotate(status, "authorise layer " + digest.text()));
  });
}

void ControlServer::Enqueue(TaskPool& pool, uint64_t id, std::function<v1::DataPlaneReply()> task) {
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
  const absl::Status status = control::SendReply(control_.get(), reply);
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
