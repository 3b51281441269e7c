#include "snapshotter/fetch/data_link.h"

#include <sys/socket.h>

#include <new>
#include <system_error>
#include <utility>

#include "core/base/log.h"

namespace kapsule::fetch {

DataLink::DataLink(UniqueFd socket, Fetcher& fetcher, Outbox& outbox, std::function<void()> lost)
    : socket_(std::move(socket)),
      fetcher_(fetcher),
      outbox_(outbox),
      lost_(std::move(lost)),
      number_(outbox.Connect()) {}

absl::StatusOr<std::unique_ptr<DataLink>> DataLink::Start(UniqueFd socket, Fetcher& fetcher,
                                                          Outbox& outbox,
                                                          std::function<void()> lost) {
  fetcher.NewConnection();
  std::unique_ptr<DataLink> link(new DataLink(std::move(socket), fetcher, outbox, std::move(lost)));
  try {
    link->receiver_ = std::thread([link = link.get()] { link->Receive(); });
    link->sender_ = std::thread([link = link.get()] { link->Send(); });
  } catch (const std::system_error& e) {
    return ResourceExhausted("start a thread: {}", e.what());
  }
  return link;
}

DataLink::~DataLink() {
  shutdown(socket_.get(), SHUT_RDWR);
  outbox_.Disconnect(number_);
  if (receiver_.joinable()) receiver_.join();
  if (sender_.joinable()) sender_.join();
}

void DataLink::Receive() {
  for (;;) {
    const absl::StatusOr<control::FetchPacket> packet = control::ReceiveFetchPacket(socket_.get());
    if (packet.ok()) {
      try {
        Take(*packet);
      } catch (const std::bad_alloc&) {
        log::error("no memory for what kapsule-fuse wants");
      }
      continue;
    }
    if (absl::IsInvalidArgument(packet.status())) {
      log::warn("from kapsule-fuse: {}", Describe(packet.status()));
      continue;
    }
    log::debug("kapsule-fuse: {}", Describe(packet.status()));
    break;
  }
  outbox_.Disconnect(number_);
  lost_();
}

void DataLink::Take(const control::FetchPacket& packet) {
  if (const auto* want = std::get_if<control::FetchWant>(&packet.body))
    return fetcher_.Want(packet.blob, {want->first, want->count});
  if (const auto* suspect = std::get_if<control::FetchSuspect>(&packet.body))
    return fetcher_.Suspect(packet.blob, suspect->block);
  if (const auto* dropped = std::get_if<control::FetchDropped>(&packet.body))
    return fetcher_.Dropped(packet.blob, {dropped->first, dropped->count}, dropped->question);
  log::warn("from kapsule-fuse: a packet of a kind that it is sent");
}

void DataLink::Send() {
  while (std::optional<Outbox::Item> item = outbox_.Next(number_)) {
    control::FetchPacket& packet = item->packet;
    if (item->look) {
      auto& have = std::get<control::FetchHave>(packet.body);
      have = fetcher_.Look(packet.blob, have.first);
      if (have.blocks.none()) continue;
    }
    const absl::Status status =
        control::SendFetchPacket(socket_.get(), packet, control::FetchSend::kWait);
    if (status.ok()) continue;
    log::debug("to kapsule-fuse: {}", Describe(status));
    shutdown(socket_.get(), SHUT_RDWR);  // so that the receiver sees it too
    return;
  }
}

}  // namespace kapsule::fetch
