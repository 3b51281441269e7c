#include "snapshotter/fuse/read_path.h"

#include <cerrno>
#include <new>
#include <utility>

#include "core/base/log.h"

namespace kapsule::fuse {
namespace {

// A reply without body needs no buffer.
void SendError(FuseDevice& device, uint64_t unique, int error) {
  const fuse_out_header header = ReplyHeader(unique, error, 0);
  device.Send(std::as_bytes(std::span(&header, 1)));
}

}  // namespace

void ReadPath::Send(const Session::PendingRead& read, const Reply& reply,
                    const absl::Status& status) {
  device_.Send(reply.Finish(read.header.unique, status.ok() ? 0 : EIO, read.length));
}

void ReadPath::Serve(Session::PendingRead read, const RequestSlot& slot, ReadScratch& scratch,
                     const Reply& reply, bool others_listen) {
  const ServedView& view = *read.view;
  if (view.layer() == nullptr && ServeWithoutKey(read, slot, reply)) return;
  const MutableByteSpan out = reply.body().first(read.length);
  if (const auto done = engine_.TryRead(scratch, view, read.in.offset, out))
    return Send(read, reply, *done);
  if (!others_listen ||
      engine_.InStream(view, read.in.offset, static_cast<uint32_t>(read.length))) {
    if (const auto parked = memory_.Park(read.header, read.in, slot.attempts()))
      return Defer(*parked, std::move(read), Again::kNo);
  }
  Send(read, reply, engine_.ReadNow(scratch, view, read.in.offset, out));
}

bool ReadPath::ServeWithoutKey(const Session::PendingRead& read, const RequestSlot& slot,
                               const Reply& reply) {
  const ServedView& view = *read.view;
  if (read.in.offset + read.length <= view.metadata_size()) {
    Send(read, reply, view.ReadMetadata(read.in.offset, reply.body().first(read.length)));
    return true;
  }
  if (const auto parked = memory_.Park(read.header, read.in, slot.attempts())) {
    Park(*parked, read, Again::kNo);
    return true;
  }
  if (view.layer() != nullptr) return false;  // it has come meanwhile
  if (!said_full_.exchange(true))
    log::error("{} reads wait, further ones of layers without key fail", kMaxParked);
  SendError(device_, read.header.unique, EIO);
  return true;
}

void ReadPath::Resume(uint32_t parked, const Session& session) {
  const SharedRead& shared = memory_.parked(parked);
  Session::CheckedRead checked = session.CheckRead(shared.header, shared.in);
  if (checked.read) return Park(parked, std::move(*checked.read), Again::kYes);
  SendError(device_, shared.header.unique, checked.error);
  memory_.Unpark(parked);
}

void ReadPath::Park(uint32_t parked, Session::PendingRead read, Again again) {
  const ViewPtr view = read.view;
  view->WhenDecided([this, parked, read = std::move(read), again]() mutable {
    SharedRead& shared = memory_.parked(parked);
    if (read.view->layer() == nullptr || shared.attempts.load() >= kMaxAttempts) {
      SendError(device_, read.header.unique, EIO);
      memory_.Unpark(parked);
      return;
    }
    Defer(parked, std::move(read), again);
  });
}

void ReadPath::Defer(uint32_t parked, Session::PendingRead read, Again again) {
  ReadEngine::Deferred deferred;
  deferred.view = read.view;
  deferred.offset = read.in.offset;
  deferred.size = static_cast<uint32_t>(read.length);
  deferred.finish = [this, parked, read = std::move(read), again](ReadScratch& scratch,
                                                                  const Reply& reply) {
    // Waiting, also behind others, harms nobody; from here on it might.
    if (again == Again::kYes) memory_.parked(parked).attempts.fetch_add(1);
    Finish(read, scratch, reply);
    memory_.Unpark(parked);
  };
  engine_.Defer(std::move(deferred));
}

void ReadPath::Finish(const Session::PendingRead& read, ReadScratch& scratch, const Reply& reply) {
  try {
    const MutableByteSpan out = reply.body().first(read.length);
    Send(read, reply, engine_.ReadNow(scratch, *read.view, read.in.offset, out));
  } catch (const std::bad_alloc&) {
    SendError(device_, read.header.unique, ENOMEM);
  }
}

}  // namespace kapsule::fuse
