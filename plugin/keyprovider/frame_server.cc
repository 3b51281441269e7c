#include "plugin/keyprovider/frame_server.h"

#include <sys/socket.h>

#include <system_error>

#include "core/base/log.h"

namespace kapsule::keyprovider {
namespace {

constexpr size_t kMaxConnections = 64;
constexpr size_t kMaxRefused = 8;
constexpr int kTimeoutMs = 10'000;

}  // namespace

FrameServer::~FrameServer() {
  std::vector<std::thread> threads;
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    queue_.clear();
    for (const int connection : active_) shutdown(connection, SHUT_RDWR);
    threads.swap(threads_);
  }
  for (std::thread& thread : threads) thread.join();
}

void FrameServer::Serve(UniqueFd connection, const PeerCredentials& peer) {
  const bool allowed = provider_.Allows(peer);
  absl::MutexLock lock(&mu_);
  const size_t open = queue_.size() + active_.size();
  if (stopping_ || open >= kMaxConnections || (!allowed && refused_ >= kMaxRefused)) {
    log::warn("closed a connection of uid={} pid={}: too many are open", peer.uid, peer.pid);
    return;
  }
  if (open >= threads_.size()) {  // no thread is idle
    try {
      threads_.emplace_back(&FrameServer::Work, this);
    } catch (const std::system_error& error) {
      // Those that run will come to it.
      log::warn("start a thread: {}", error.what());
      if (threads_.empty()) return;
    }
  }
  refused_ += allowed ? 0 : 1;
  queue_.push_back({std::move(connection), peer, allowed});
}

void FrameServer::Work() {
  while (true) {
    Job job;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(
          +[](FrameServer* self) ABSL_SHARED_LOCKS_REQUIRED(self->mu_) { return self->HasWork(); },
          this));
      if (stopping_) return;
      job = std::move(queue_.front());
      queue_.pop_front();
      active_.insert(job.connection.get());
    }
    Answer(job);
    absl::MutexLock lock(&mu_);
    active_.erase(job.connection.get());
    refused_ -= job.allowed ? 0 : 1;
  }
}

void FrameServer::Answer(const Job& job) const {
  const int connection = job.connection.get();
  if (!SetTimeout(connection, kTimeoutMs).ok()) return;
  absl::StatusOr<UnwrappedLayer> result = Internal("unanswered");
  if (job.allowed) {
    const absl::StatusOr<WireRequest> request = ReceiveRequest(connection);
    if (absl::IsUnavailable(request.status())) return;  // hung up without a word
    const absl::StatusOr<oci::Annotations> annotations =
        request.ok() ? AnnotationsFromJson(request->annotations_json) : request.status();
    if (annotations.ok()) {
      result = provider_.Unwrap(*annotations, job.peer);
    } else {
      log::warn("request of uid={} pid={}: {}", job.peer.uid, job.peer.pid,
                Describe(annotations.status()));
      result = annotations.status();
    }
  } else {
    // Its request is taken off the socket, or the peer would see a reset
    // instead of the answer, but not read.
    if (!ReceivePacket(connection).ok()) return;
    result = provider_.Refuse(job.peer);
  }
  const absl::Status sent = SendReply(connection, result);
  if (!sent.ok()) log::warn("reply to pid={}: {}", job.peer.pid, Describe(sent));
}

}  // namespace kapsule::keyprovider
