#include "core/image/piece_worker.h"

namespace kapsule::image {

PieceWorker::PieceWorker(Work work) : work_(std::move(work)), thread_([this] { Run(); }) {}

PieceWorker::~PieceWorker() {
  {
    const absl::MutexLock lock(&mu_);
    queue_.clear();
    stop_ = true;
  }
  thread_.join();
}

absl::Status PieceWorker::Push(SharedPiece piece) {
  const absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(this, &PieceWorker::HasRoom));
  queue_.push_back(std::move(piece));
  return status_;
}

absl::Status PieceWorker::Drain() {
  const absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(this, &PieceWorker::IsIdle));
  return status_;
}

void PieceWorker::Run() {
  while (true) {
    SharedPiece piece;
    bool failed = false;
    {
      const absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(this, &PieceWorker::HasWork));
      if (queue_.empty()) return;  // stop_
      piece = std::move(queue_.front());
      queue_.pop_front();
      busy_ = true;
      failed = !status_.ok();
    }
    const absl::Status status = failed ? absl::OkStatus() : work_(*piece);
    piece.reset();
    const absl::MutexLock lock(&mu_);
    status_.Update(status);
    busy_ = false;
  }
}

}  // namespace kapsule::image
