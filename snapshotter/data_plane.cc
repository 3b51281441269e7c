#include "snapshotter/data_plane.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/clock.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "core/base/log.h"
#include "core/keyprovider/wire.h"
#include "snapshotter/control_channel.h"
#include "snapshotter/fuse_mount.h"
#include "snapshotter/fuse_process.h"

namespace kapsule::snapshotter {
namespace fs = std::filesystem;
namespace {

constexpr absl::Duration kServeTimeout = absl::Seconds(10);
constexpr absl::Duration kMinBackOff = absl::Milliseconds(100), kMaxBackOff = absl::Seconds(5);
// A process that lived this long did not fail at its start.
constexpr absl::Duration kStableLife = absl::Seconds(10);
constexpr int kEndGraceMs = 2000;

uint32_t TimeoutMs(absl::Time deadline) {
  const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
  return static_cast<uint32_t>(std::clamp<int64_t>(left, 1, 3'600'000));
}

absl::StatusOr<UniqueFd> AnnotationsMemfd(const oci::Annotations& annotations) {
  return SealedMemfd("annotations", AsBytes(keyprovider::AnnotationsToJson(annotations)));
}

}  // namespace

class DataPlane::Impl {
 public:
  explicit Impl(Options options) : options_(std::move(options)), wake_(eventfd(0, EFD_CLOEXEC)) {}
  ~Impl();

  // Starts the first process and the watcher.
  absl::Status Start();

  absl::StatusOr<v1::DataPlaneReply> Call(v1::DataPlaneRequest request, const std::vector<int>& fds,
                                          absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  fs::path ViewPath(const oci::Digest& digest) const { return options_.views / digest.hex(); }
  bool serving() const ABSL_LOCKS_EXCLUDED(mu_);
  pid_t pid() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // One life of kapsule-fuse with its mount; members end in reverse order.
  struct Life {
    explicit Life(FuseMount m) : mount(std::move(m)) {}
    FuseMount mount;
    std::unique_ptr<FuseProcess> process;
    std::shared_ptr<ControlChannel> channel;
    absl::Time since = absl::Now();
  };

  absl::StatusOr<std::unique_ptr<Life>> StartLife();
  absl::Status Serve(Life& life) ABSL_LOCKS_EXCLUDED(mu_);
  void EndLife(std::unique_ptr<Life> life) ABSL_LOCKS_EXCLUDED(mu_);

  // The watcher: until the destructor calls.
  void Watch();
  bool WaitForDeath(const Life& life);    // false: the destructor called first
  bool Restart(absl::Duration back_off);  // the same
  bool Sleep(absl::Duration duration);    // the same
  bool stopping() const ABSL_LOCKS_EXCLUDED(mu_);
  void Wake();

  const Options options_;
  const UniqueFd wake_;         // an eventfd: a channel has ended, or the destructor calls
  std::unique_ptr<Life> life_;  // of the watcher, once it runs
  std::thread watcher_;

  mutable absl::Mutex mu_;  // never held across I/O, mount(2) or a callback
  // Of the process that serves or is about to; null while there is none.
  std::shared_ptr<ControlChannel> channel_ ABSL_GUARDED_BY(mu_);
  pid_t pid_ ABSL_GUARDED_BY(mu_) = -1;
  bool serving_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
};

absl::Status DataPlane::Impl::Start() {
  if (!wake_.valid()) return ErrnoStatus(errno, "eventfd");
  RETURN_IF_ERROR(DetachFuseMounts(options_.views));
  RETURN_IF_ERROR(MakeDirs(options_.views, 0700));
  ASSIGN_OR_RETURN(life_, StartLife());
  watcher_ = std::thread([this] { Watch(); });
  return absl::OkStatus();
}

DataPlane::Impl::~Impl() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    if (channel_ != nullptr) channel_->Shutdown();
  }
  Wake();
  if (watcher_.joinable()) watcher_.join();
  if (life_ != nullptr) EndLife(std::move(life_));
}

absl::StatusOr<std::unique_ptr<DataPlane::Impl::Life>> DataPlane::Impl::StartLife() {
  ASSIGN_OR_RETURN(control::SocketPair pair, control::MakeSocketPair());
  ASSIGN_OR_RETURN(FuseMount mount, FuseMount::Make(options_.views));
  auto life = std::make_unique<Life>(std::move(mount));
  ASSIGN_OR_RETURN(
      life->process,
      FuseProcess::Start(
          options_.program,
          {"--control-fd", std::to_string(FuseProcess::kControlFd), "--uid",
           std::to_string(options_.uid), "--gid", std::to_string(options_.gid), "--keyprovider",
           options_.keyprovider_socket.string(), "--log-level", options_.log_level},
          pair.theirs.get()));
  pair.theirs.reset();
  life->channel = std::make_shared<ControlChannel>(std::move(pair.ours), [this] { Wake(); });
  const absl::Status served = Serve(*life);
  if (!served.ok()) {
    EndLife(std::move(life));
    return Annotate(served, "start kapsule-fuse (its log says more)");
  }
  return life;
}

absl::Status DataPlane::Impl::Serve(Life& life) {
  {
    absl::MutexLock lock(&mu_);
    if (stopping_) return Cancelled("the snapshotter stops");
    channel_ = life.channel;
    pid_ = life.process->pid();
  }
  v1::DataPlaneRequest request;
  request.mutable_serve();
  {
    const UniqueFd device = life.mount.TakeDevice();
    RETURN_IF_ERROR(
        life.channel->Call(std::move(request), {device.get()}, absl::Now() + kServeTimeout)
            .status());
  }
  life.mount.Tune();
  absl::MutexLock lock(&mu_);
  serving_ = true;
  return absl::OkStatus();
}

void DataPlane::Impl::EndLife(std::unique_ptr<Life> life) {
  {
    absl::MutexLock lock(&mu_);
    channel_ = nullptr;
    pid_ = -1;
    serving_ = false;
  }
  life->channel->Close();
  life->process->WaitForEnd(kEndGraceMs);
  const pid_t pid = life->process->pid();
  log::info("kapsule-fuse {} has ended: {}", pid, life->process->End());
}

absl::StatusOr<v1::DataPlaneReply> DataPlane::Impl::Call(v1::DataPlaneRequest request,
                                                         const std::vector<int>& fds,
                                                         absl::Time deadline) {
  std::shared_ptr<ControlChannel> channel;
  {
    absl::MutexLock lock(&mu_);
    if (serving_) channel = channel_;
  }
  if (channel == nullptr) return Unavailable("kapsule-fuse is not running");
  return channel->Call(std::move(request), fds, deadline);
}

void DataPlane::Impl::Wake() {
  const uint64_t one = 1;
  if (write(wake_.get(), &one, sizeof(one)) < 0) log::error("write an eventfd failed");
}

bool DataPlane::Impl::WaitForDeath(const Life& life) {
  for (;;) {
    if (stopping()) return false;
    if (life.channel->ended()) return true;
    pollfd fds[] = {{life.process->pidfd(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    poll(fds, std::size(fds), -1);
    if (fds[0].revents != 0) return !stopping();
    uint64_t count;
    if (fds[1].revents != 0 && read(wake_.get(), &count, sizeof(count)) < 0)
      log::error("read an eventfd failed");
  }
}

bool DataPlane::Impl::Sleep(absl::Duration duration) {
  absl::MutexLock lock(&mu_);
  return !mu_.AwaitWithTimeout(absl::Condition(&stopping_), duration);
}

void DataPlane::Impl::Watch() {
  absl::Duration back_off = kMinBackOff;
  while (WaitForDeath(*life_)) {
    if (absl::Now() - life_->since > kStableLife) back_off = kMinBackOff;
    log::error("kapsule-fuse {} has died; starting it again", life_->process->pid());
    life_->channel->Close();  // fails the calls that are under way
    {
      absl::MutexLock lock(&mu_);
      serving_ = false;
    }
    if (options_.on_death) options_.on_death();
    EndLife(std::move(life_));
    if (!Restart(back_off)) return;
    back_off = std::min(2 * back_off, kMaxBackOff);
    if (options_.on_restart) options_.on_restart();
  }
}

bool DataPlane::Impl::Restart(absl::Duration back_off) {
  for (;;) {
    if (!Sleep(back_off)) return false;
    absl::StatusOr<std::unique_ptr<Life>> life = StartLife();
    if (life.ok()) {
      life_ = std::move(*life);
      return true;
    }
    log::error("{}", Describe(life.status()));
    back_off = std::min(2 * back_off, kMaxBackOff);
  }
}

bool DataPlane::Impl::stopping() const {
  absl::MutexLock lock(&mu_);
  return stopping_;
}

bool DataPlane::Impl::serving() const {
  absl::MutexLock lock(&mu_);
  return serving_ && !channel_->ended();  // its end is known before the watcher wakes
}

pid_t DataPlane::Impl::pid() const {
  absl::MutexLock lock(&mu_);
  return pid_;
}

DataPlane::DataPlane(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DataPlane::~DataPlane() = default;

absl::StatusOr<std::unique_ptr<DataPlane>> DataPlane::Start(Options options) {
  if (!options.views.is_absolute() || !options.views.has_filename())
    return InvalidArgument("{} is not an absolute path of a folder", options.views.string());
  // Mount points are known by their real paths; the last part may be a dead mount.
  RETURN_IF_ERROR(MakeDirs(options.views.parent_path(), 0700));
  std::error_code error;
  const fs::path parent = fs::canonical(options.views.parent_path(), error);
  if (error) return ErrnoStatus(error.value(), options.views.string());
  options.views = parent / options.views.filename();
  auto impl = std::make_unique<Impl>(std::move(options));
  RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<DataPlane>(new DataPlane(std::move(impl)));
}

absl::StatusOr<fs::path> DataPlane::Open(const oci::Digest& digest, uint64_t size, bool encrypted,
                                         UniqueFd blob, const oci::Annotations& annotations,
                                         absl::Time deadline) {
  ASSIGN_OR_RETURN(const UniqueFd memfd, AnnotationsMemfd(annotations));
  v1::DataPlaneRequest request;
  request.mutable_open()->set_digest(digest.hex());
  request.mutable_open()->set_size(size);
  request.mutable_open()->set_encrypted(encrypted);
  request.mutable_open()->set_timeout_ms(TimeoutMs(deadline));
  RETURN_IF_ERROR(impl_->Call(std::move(request), {blob.get(), memfd.get()}, deadline).status());
  return impl_->ViewPath(digest);
}

absl::Status DataPlane::Authorise(const oci::Digest& digest, const oci::Annotations& annotations,
                                  absl::Time deadline) {
  ASSIGN_OR_RETURN(const UniqueFd memfd, AnnotationsMemfd(annotations));
  v1::DataPlaneRequest request;
  request.mutable_authorise()->set_digest(digest.hex());
  request.mutable_authorise()->set_timeout_ms(TimeoutMs(deadline));
  return impl_->Call(std::move(request), {memfd.get()}, deadline).status();
}

absl::Status DataPlane::Close(const oci::Digest& digest, absl::Time deadline) {
  v1::DataPlaneRequest request;
  request.mutable_close()->set_digest(digest.hex());
  return impl_->Call(std::move(request), {}, deadline).status();
}

bool DataPlane::serving() const { return impl_->serving(); }
pid_t DataPlane::pid() const { return impl_->pid(); }

}  // namespace kapsule::snapshotter
