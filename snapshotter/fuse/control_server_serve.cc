// How a process begins to serve: what a predecessor left, and the kernel's connection.
#include <absl/time/clock.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cerrno>

#include "core/base/log.h"
#include "snapshotter/fuse/control_server.h"

namespace kapsule::fuse {
namespace {

// What is held under a name that stands for one descriptor.
absl::StatusOr<UniqueFd> GetOne(const control::Holder& holder, std::string_view name) {
  absl::StatusOr<std::vector<UniqueFd>> fds = holder.Get(name);
  if (!fds.ok()) return Annotate(fds.status(), fmt::format("get \"{}\" from the holder", name));
  if (fds->size() != 1)
    return InvalidArgument("the holder has {} descriptors as \"{}\"", fds->size(), name);
  return std::move(fds->front());
}

// A Prepare under way: answered once.
struct Preparation {
  // Not kept: where Serve comes first, some are made anew.
  std::vector<std::weak_ptr<const ServedView>> views;
  uint32_t not_loaded = 0;
  std::atomic<size_t> undecided;
  std::atomic<bool> answered = false;
};

}  // namespace

void ControlServer::Prepare(uint64_t id, uint32_t timeout_ms) {
  if (prepared_ || state_ != State::kIdle)
    return Answer(control::MakeReply(id, FailedPrecondition("too late to prepare")));
  prepared_ = true;
  absl::StatusOr<ViewRestorer::Prepared> loaded = restorer_.Prepare();
  if (!loaded.ok()) return Answer(control::MakeReply(id, loaded.status()));
  auto preparation = std::make_shared<Preparation>();
  preparation->views.assign(loaded->views.begin(), loaded->views.end());
  preparation->not_loaded = loaded->not_loaded;
  preparation->undecided = loaded->views.size() + 1;
  const auto answer = [this, id, preparation] {
    if (preparation->answered.exchange(true)) return;
    v1::DataPlaneReply reply = control::MakeReply(id, absl::OkStatus());
    uint32_t without_key = preparation->not_loaded;
    for (const auto& weak : preparation->views) {
      const ViewPtr view = weak.lock();
      without_key += view == nullptr || view->layer() == nullptr;
    }
    reply.set_views(static_cast<uint32_t>(preparation->views.size()) + preparation->not_loaded);
    reply.set_views_without_key(without_key);
    Answer(reply);
  };
  const auto decided = [answer, preparation] {
    if (--preparation->undecided == 0) answer();
  };
  for (const ViewPtr& view : loaded->views) view->WhenDecided(decided);
  chores_.AddAt(absl::Now() + absl::Milliseconds(timeout_ms), answer);
  decided();
}

void ControlServer::Serve(uint64_t id) {
  // This code tells the next kapsule-snapshotter that all is well.
  if (state_ != State::kIdle)
    return Answer(control::MakeReply(id, AlreadyExists("serve once only: a connection is served")));
  failure_ = StartServing(id);
  if (!failure_.ok()) return Answer(control::MakeReply(id, failure_));
  state_ = State::kServing;
  if (memory_->initialised()) AnswerServe(id);
}

// The kernel's INIT may be answered, again, while this returns.
void ControlServer::AnswerServe(uint64_t id) {
  if (!serve_answered_.exchange(true)) Answer(control::MakeReply(id, absl::OkStatus()));
}

absl::Status ControlServer::StartServing(uint64_t id) {
  ASSIGN_OR_RETURN(UniqueFd fuse, GetOne(*options_.holder, control::kHeldFuse));
  ASSIGN_OR_RETURN(device_, FuseDevice::Open(std::move(fuse), [this] { LogFirstReply(); }));
  RETURN_IF_ERROR(AgreeOnMemory());
  memory_->TakeOver();
  ASSIGN_OR_RETURN(views_taken_, restorer_.Restore(views_));
  const std::vector<uint32_t> parked = memory_->ParkedReads();
  requests_taken_ = parked.size();
  for (uint32_t i = 0; i < memory_->slots(); ++i)
    requests_taken_ += !memory_->slot(i).request().empty();
  RETURN_IF_ERROR(engine_->Start());
  reads_ = std::make_unique<ReadPath>(*engine_, *memory_, *device_, fetch_);
  RETURN_IF_ERROR(StartFetching());
  for (const uint32_t read : parked) reads_->Resume(read, session_);
  return workers_->Start(
      {memory_.get(), device_.get(), &session_, reads_.get()},
      {[this, id] { AnswerServe(id); }, [this](const absl::Status& why) { ConnectionLost(why); }});
}

// A predecessor has ended: nobody else receives from its socket.
absl::Status ControlServer::StartFetching() {
  absl::StatusOr<UniqueFd> socket = GetOne(*options_.holder, control::kHeldFetch);
  absl::Status status = socket.status();
  if (status.ok()) status = UseFetcher(*std::move(socket));
  if (!status.ok() && !absl::IsNotFound(status)) log::error("{}", Describe(status));
  return fetch_.Start();
}

absl::Status ControlServer::UseFetcher(UniqueFd socket) {
  int type = 0;
  socklen_t size = sizeof(type);
  if (getsockopt(socket.get(), SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_SEQPACKET)
    return InvalidArgument("what leads to kapsule-fetch is not a SOCK_SEQPACKET socket");
  fetch_.UseSocket(std::move(socket));
  return absl::OkStatus();
}

// The memory that was mapped when the process started, which is locked, must be
// the one that a successor will find.
absl::Status ControlServer::AgreeOnMemory() const {
  const absl::StatusOr<UniqueFd> held = GetOne(*options_.holder, control::kHeldRequests);
  if (absl::IsNotFound(held.status()) && !memory_->adopted())
    return options_.holder->Put(control::kHeldRequests, {memory_->fd()});
  if (!held.ok()) return held.status();
  struct stat theirs, ours;
  if (fstat(held->get(), &theirs) != 0 || fstat(memory_->fd(), &ours) != 0)
    return ErrnoStatus(errno, "stat the memory of requests");
  if (theirs.st_ino != ours.st_ino || theirs.st_dev != ours.st_dev)
    return FailedPrecondition(
        "the holder has another memory of requests than when kapsule-fuse was started");
  return absl::OkStatus();
}

void ControlServer::LogFirstReply() const {
  if (!memory_->adopted()) return;
  log::info("took over: {} views, {} requests again, first reply after {} ms since exec",
            views_taken_, requests_taken_,
            absl::ToInt64Milliseconds(absl::Now() - options_.process_start));
}

}  // namespace kapsule::fuse
