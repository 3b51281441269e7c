#include "snapshotter/fetch/outbox.h"

#include <utility>

namespace kapsule::fetch {
namespace {

// A peer that asks and does not listen is told no more than this.
constexpr size_t kMaxItems = 1 << 16;

}  // namespace

uint64_t Outbox::Connect() {
  absl::MutexLock lock(&mu_);
  items_.clear();
  windows_.clear();
  current_ = ++last_;
  return current_;
}

void Outbox::Disconnect(uint64_t connection) {
  absl::MutexLock lock(&mu_);
  if (current_ != connection) return;
  current_ = 0;
  items_.clear();
  windows_.clear();
}

bool Outbox::connected() const {
  absl::MutexLock lock(&mu_);
  return current_ != 0;
}

void Outbox::Have(const oci::Digest& blob, Range blocks) {
  absl::MutexLock lock(&mu_);
  if (current_ == 0 || blocks.count == 0) return;
  constexpr uint64_t kWindow = control::kMaxFetchBlocks;
  for (uint64_t first = blocks.first / kWindow * kWindow; first < blocks.end(); first += kWindow)
    if (items_.size() < kMaxItems && windows_.insert({blob, first}).second)
      items_.push_back({{blob, control::FetchHave{first, {}}}, true});
}

void Outbox::Tell(control::FetchPacket packet) {
  absl::MutexLock lock(&mu_);
  if (current_ != 0 && items_.size() < kMaxItems) items_.push_back({std::move(packet), false});
}

std::optional<Outbox::Item> Outbox::Next(uint64_t connection) {
  absl::MutexLock lock(&mu_);
  const auto ready = [this, connection]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return current_ != connection || !items_.empty();
  };
  mu_.Await(absl::Condition(&ready));
  if (current_ != connection) return std::nullopt;
  Item item = std::move(items_.front());
  items_.pop_front();
  if (item.look)
    windows_.erase({item.packet.blob, std::get<control::FetchHave>(item.packet.body).first});
  return item;
}

}  // namespace kapsule::fetch
