#include "snapshotter/fuse/worker_pool.h"

#include <algorithm>
#include <cerrno>
#include <new>
#include <system_error>
#include <thread>

#include "core/base/log.h"

namespace kapsule::fuse {
namespace {

uint32_t OpcodeOf(ByteSpan request) {
  return request.size() < sizeof(fuse_in_header)
             ? 0
             : LoadLe<uint32_t>(request.data() + offsetof(fuse_in_header, opcode));
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerPool>> WorkerPool::Make(unsigned count,
                                                             const ReadEngine& engine) {
  std::vector<Worker> workers;
  for (unsigned i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(LockedBuffer reply, LockedBuffer::Make(Reply::kBufferSize));
    workers.push_back({std::move(reply), engine.MakeScratch()});
  }
  return std::unique_ptr<WorkerPool>(new WorkerPool(std::move(workers)));
}

bool WorkerPool::locked() const {
  return std::all_of(workers_.begin(), workers_.end(),
                     [](const Worker& worker) { return worker.reply.locked(); });
}

absl::Status WorkerPool::Start(const Parts& parts, Events events) {
  parts_ = parts;
  events_ = std::move(events);
  try {
    for (uint32_t i = 0; i < workers_.size(); ++i) std::thread([this, i] { Run(i); }).detach();
  } catch (const std::system_error& e) {
    return ResourceExhausted("start a FUSE worker: {}", e.what());
  }
  return absl::OkStatus();
}

void WorkerPool::Run(uint32_t index) {
  Worker& worker = workers_[index];
  // A predecessor may have had more workers.
  for (uint32_t i = index; i < parts_.memory->slots(); i += static_cast<uint32_t>(workers_.size()))
    DoAgain(worker, parts_.memory->slot(i));
  Serve(worker, parts_.memory->slot(index));
}

void WorkerPool::DoAgain(Worker& worker, const RequestSlot& slot) {
  const ByteSpan request = slot.request();
  const Reply reply(worker.reply.bytes());
  if (request.empty()) {
    // Nothing was under way.
  } else if (slot.state() == SharedSlot::kApplied) {
    Send(request, Session::AnswerApplied(request, reply, slot));
  } else if (slot.attempts() >= kMaxAttempts) {
    log::error("a FUSE request of kind {} was tried {} times without an answer: it fails",
               OpcodeOf(request), slot.attempts());
    Send(request, Session::Refuse(request, reply, EIO));
  } else {
    slot.CountAttempt();
    Handle(worker, slot, request);
  }
  slot.Clear();
}

void WorkerPool::Serve(Worker& worker, const RequestSlot& slot) {
  for (;;) {
    ++listening_;
    const absl::StatusOr<size_t> n = parts_.device->Read(slot.buffer());
    --listening_;
    if (!n.ok()) return events_.connection_lost(n.status());
    Handle(worker, slot, slot.buffer().first(*n));
    slot.Clear();
  }
}

void WorkerPool::Handle(Worker& worker, const RequestSlot& slot, ByteSpan request) {
  const Reply reply(worker.reply.bytes());
  try {
    Session::Outcome outcome = parts_.session->Handle(request, reply, slot);
    if (outcome.read) {
      parts_.reads->Serve(std::move(*outcome.read), slot, *worker.scratch, reply, listening_ > 0);
    } else {
      Send(request, outcome.reply);
    }
  } catch (const std::bad_alloc&) {
    Send(request, Session::Refuse(request, reply, ENOMEM));
  }
}

void WorkerPool::Send(ByteSpan request, ByteSpan reply) {
  if (reply.empty()) return;
  parts_.device->Send(reply);
  if (OpcodeOf(request) != FUSE_INIT) return;
  parts_.memory->SetInitialised();
  events_.initialised();
}

}  // namespace kapsule::fuse
