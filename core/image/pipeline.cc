#include "core/image/pipeline.h"

#include <sys/mman.h>

#include <new>
#include <system_error>

namespace kapsule::image {
namespace {

// Direct I/O hands the disk runs of adjacent memory: of small pages these are
// 4 KiB each, of huge pages whole pieces, which is more than twice as fast. They
// are besides filled with one fault in place of 512.
constexpr std::align_val_t kHugePage{2 << 20};

std::byte* AllocatePieces(size_t pieces) {
  const size_t size = pieces * kPieceSize;
  void* const memory = ::operator new(size, kHugePage);
  madvise(memory, size, MADV_HUGEPAGE);  // a hint; may fail
  return static_cast<std::byte*>(memory);
}

}  // namespace

void Pipeline::FreeMemory::operator()(std::byte* memory) const {
  ::operator delete(memory, kHugePage);
}

absl::StatusOr<std::unique_ptr<Pipeline>> Pipeline::Start(std::vector<Stage> stages,
                                                          size_t pieces) {
  try {
    std::unique_ptr<Pipeline> pipeline(new Pipeline(std::move(stages), pieces));
    for (size_t i = 0; i < pipeline->stages_.size(); ++i)
      pipeline->threads_.emplace_back([raw = pipeline.get(), i] { raw->Run(i); });
    return pipeline;
  } catch (const std::system_error& error) {
    return ResourceExhausted("start a thread: {}", error.what());
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("no memory for {} MiB of buffers", pieces * kPieceSize >> 20);
  }
}

Pipeline::Pipeline(std::vector<Stage> stages, size_t pieces)
    : stages_(std::move(stages)),
      memory_(AllocatePieces(pieces)),
      pieces_(pieces),
      passed_(stages_.size() + 1) {
  for (size_t i = 0; i < pieces; ++i)
    pieces_[i].room = MutableByteSpan(memory_.get() + i * kPieceSize, kPieceSize);
}

Pipeline::~Pipeline() {
  {
    const absl::MutexLock lock(&mu_);
    stop_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

absl::StatusOr<Piece*> Pipeline::Next() {
  const absl::MutexLock lock(&mu_);
  const auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return Ended() || passed_.front() - passed_.back() < pieces_.size();
  };
  mu_.Await(absl::Condition(&ready));
  if (!status_.ok()) return status_;
  return &pieces_[passed_.front() % pieces_.size()];
}

absl::Status Pipeline::Push() {
  const absl::MutexLock lock(&mu_);
  ++passed_.front();
  return status_;
}

absl::Status Pipeline::WaitFor(size_t stage) {
  const absl::MutexLock lock(&mu_);
  const auto done = [this, stage]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return Ended() || passed_[stage + 1] == passed_.front();
  };
  mu_.Await(absl::Condition(&done));
  return status_;
}

uint64_t Pipeline::bytes_passed() const {
  const absl::MutexLock lock(&mu_);
  return bytes_passed_;
}

void Pipeline::Run(size_t stage) {
  while (true) {
    Piece* piece = nullptr;
    {
      const absl::MutexLock lock(&mu_);
      const auto ready = [this, stage]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return Ended() || passed_[stage + 1] < passed_[stage];
      };
      mu_.Await(absl::Condition(&ready));
      if (Ended()) return;
      piece = &pieces_[passed_[stage + 1] % pieces_.size()];
    }
    const absl::Status status = stages_[stage](*piece);
    const absl::MutexLock lock(&mu_);
    status_.Update(status);
    if (!status.ok()) return;
    ++passed_[stage + 1];
    if (stage + 1 == stages_.size()) bytes_passed_ += piece->size;
  }
}

}  // namespace kapsule::image
