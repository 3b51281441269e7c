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

// In a thread that others' reads need.
void LogFailure(const Session::PendingRead& read, const absl::Status& status) {
  try {
    read.view->LogFailure(read.in.offset, status);
  } catch (const std::bad_alloc&) {
    log::error("no memory to say why a read failed");
  }
}

}  // namespace

void ReadPath::Send(const Session::PendingRead& read, const Reply& reply,
                    const absl::Status& status) {
  if (!status.ok()) LogFailure(read, status);
  device_.Send(reply.Finish(read.header.unique, status.ok() ? 0 : EIO, read.length));
}

void ReadPath::Serve(Session::PendingRead read, const RequestSlot& slot, ReadScratch& scratch,
                     const Reply& reply, bool others_listen) {
  const ServedView& view = *read.view;
  if (view.layer() == nullptr && ServeWithoutKey(read, slot, reply)) return;
  const MutableByteSpan out = reply.body().first(read.length);
  std::optional<absl::Status> done = engine_.TryRead(scratch, view, read.in.offset, out);
  if (!done && ReadEngine::IsThere(view, read.in.offset, read.length)) {
    if (!others_listen ||
        engine_.InStream(view, read.in.offset, static_cast<uint32_t>(read.length))) {
      if (const auto place = memory_.Park(read.header, read.in, slot.attempts()))
        return Defer({*place, std::move(read)});
    }
    done = engine_.ReadNow(scratch, view, read.in.offset, out);
  }
  if (done && !IsToBeDoneAgain(read, *done, false)) return Send(read, reply, *done);
  ServeFromAfar(std::move(read), slot, done && absl::IsDataLoss(*done));
}

bool ReadPath::IsToBeDoneAgain(const Session::PendingRead& read, const absl::Status& status,
                               bool suspected) {
  if (status.ok()) return false;
  const ServedView& view = *read.view;
  if (!ReadEngine::IsThere(view, read.in.offset, read.length)) return true;
  const std::shared_ptr<RemoteBlob> blob = fetch_.Find(view.digest());
  if (blob == nullptr) return false;
  if (absl::IsUnavailable(status)) return true;  // it was away, and has come back since
  if (suspected || !absl::IsDataLoss(status)) return false;
  const auto [offset, size] = ReadEngine::InLayer(view, read.in.offset, read.length);
  blob->Suspect(offset, size);
  return true;
}

void ReadPath::ServeFromAfar(Session::PendingRead read, const RequestSlot& slot, bool suspected) {
  const ServedView& view = *read.view;
  std::optional<uint32_t> place;
  if (view.has_room_for_far_read()) place = memory_.Park(read.header, read.in, slot.attempts());
  if (place)
    return WaitForBytes({.place = *place, .read = std::move(read), .suspected = suspected});
  LogFailure(read, ResourceExhausted("too many reads wait for the registry, further ones fail"));
  SendError(device_, read.header.unique, EIO);
}

bool ReadPath::ServeWithoutKey(const Session::PendingRead& read, const RequestSlot& slot,
                               const Reply& reply) {
  const ServedView& view = *read.view;
  if (read.in.offset + read.length <= view.metadata_size()) {
    Send(read, reply, view.ReadMetadata(read.in.offset, reply.body().first(read.length)));
    return true;
  }
  if (const auto place = memory_.Park(read.header, read.in, slot.attempts())) {
    Park({*place, read});
    return true;
  }
  if (view.layer() != nullptr) return false;  // it has come meanwhile
  if (!said_full_.exchange(true))
    log::error("{} reads wait, further ones of layers without key fail", kMaxParked);
  SendError(device_, read.header.unique, EIO);
  return true;
}

void ReadPath::Resume(uint32_t place, const Session& session) {
  const SharedRead& shared = memory_.parked(place);
  Session::CheckedRead checked = session.CheckRead(shared.header, shared.in);
  if (checked.read) return Park({place, std::move(*checked.read), Again::kYes});
  SendError(device_, shared.header.unique, checked.error);
  memory_.Unpark(place);
}

void ReadPath::Park(Parked parked) {
  const ViewPtr view = parked.read.view;
  view->WhenDecided([this, parked = std::move(parked)] {
    const Session::PendingRead& read = parked.read;
    if (read.view->layer() == nullptr || memory_.parked(parked.place).attempts >= kMaxAttempts)
      return Fail(parked, EIO);
    if (ReadEngine::IsThere(*read.view, read.in.offset, read.length)) return Defer(parked);
    WaitForBytes(parked);
  });
}

void ReadPath::WaitForBytes(Parked parked) {
  const Session::PendingRead& read = parked.read;
  if (!std::exchange(parked.far, true)) read.view->CountFarRead();
  try {
    ReadEngine::WhenThere(*read.view, read.in.offset, read.length,
                          [this, parked](const absl::Status& status) {
                            if (status.ok()) return Defer(parked);
                            LogFailure(parked.read, status);
                            Fail(parked, EIO);
                          });
  } catch (const std::bad_alloc&) {
    Fail(parked, ENOMEM);
  }
}

void ReadPath::Defer(Parked parked) {
  try {
    ReadEngine::Deferred deferred;
    deferred.view = parked.read.view;
    deferred.offset = parked.read.in.offset;
    deferred.size = static_cast<uint32_t>(parked.read.length);
    deferred.finish = [this, parked](ReadScratch& scratch, const Reply& reply) {
      Finish(parked, scratch, reply);
    };
    engine_.Defer(std::move(deferred));
  } catch (const std::bad_alloc&) {
    Fail(parked, ENOMEM);
  }
}

void ReadPath::Finish(const Parked& parked, ReadScratch& scratch, const Reply& reply) {
  const Session::PendingRead& read = parked.read;
  // Waiting, also behind others, harms nobody; from here on it might.
  if (parked.again == Again::kYes) memory_.parked(parked.place).attempts.fetch_add(1);
  try {
    const MutableByteSpan out = reply.body().first(read.length);
    const absl::Status status = engine_.ReadNow(scratch, *read.view, read.in.offset, out);
    if (IsToBeDoneAgain(read, status, parked.suspected))
      return WaitForBytes({.place = parked.place,
                           .read = read,
                           .suspected = parked.suspected || absl::IsDataLoss(status),
                           .far = parked.far});
    Send(read, reply, status);
    End(parked);
  } catch (const std::bad_alloc&) {
    Fail(parked, ENOMEM);
  }
}

void ReadPath::Fail(const Parked& parked, int error) {
  SendError(device_, parked.read.header.unique, error);
  End(parked);
}

void ReadPath::End(const Parked& parked) {
  if (parked.far) parked.read.view->EndFarRead();
  memory_.Unpark(parked.place);
}

}  // namespace kapsule::fuse
