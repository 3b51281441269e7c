#include "core/control/holder_store.h"

#include <algorithm>
#include <numeric>

namespace kapsule::control {
namespace {

HolderStore::Answer Code(absl::StatusCode code, std::span<std::byte, kMaxHolderAnswer> out,
                         std::span<const UniqueFd> fds = {}) {
  out[0] = static_cast<std::byte>(code);
  out[1] = std::byte{0};
  return {kHolderAnswerHeader, fds, false};
}

bool MayChange(Requester from, std::string_view name) {
  return from == Requester::kRoot || name == kHeldRequests || name.starts_with(kHeldViewPrefix);
}

}  // namespace

HolderStore::HolderStore(size_t max_fds, HeldMirror* mirror)
    : max_fds_(max_fds),
      mirror_(mirror),
      entries_(new Entry[kMaxHeldNames]),
      order_(new uint16_t[kMaxHeldNames]) {
  std::iota(order_.get(), order_.get() + kMaxHeldNames, uint16_t{0});
}

size_t HolderStore::LowerBound(std::string_view name) const {
  const std::span<const uint16_t> used(order_.get(), count_);
  const auto less = [this](uint16_t entry, std::string_view text) {
    return entries_[entry].name() < text;
  };
  return static_cast<size_t>(std::lower_bound(used.begin(), used.end(), name, less) - used.begin());
}

HolderStore::Entry* HolderStore::Find(std::string_view name) const {
  const size_t at = LowerBound(name);
  if (at == count_ || entries_[order_[at]].name() != name) return nullptr;
  return &entries_[order_[at]];
}

void HolderStore::Fill(Entry& entry, std::span<UniqueFd> fds) {
  std::ranges::move(fds, entry.fds.begin());
  entry.fd_count = static_cast<uint8_t>(fds.size());
  fds_ += fds.size();
  entry.mirrored = mirror_ != nullptr && mirror_->Added(entry.name(), entry.held());
}

void HolderStore::Empty(Entry& entry) {
  for (UniqueFd& fd : entry.fds) fd = UniqueFd();
  fds_ -= entry.fd_count;
  if (entry.mirrored) mirror_->Removed(entry.name(), entry.fd_count);
  entry.fd_count = 0;
}

absl::StatusCode HolderStore::Put(std::string_view name, std::span<UniqueFd> fds) {
  if (!IsHeldName(name) || fds.empty() || fds.size() > kMaxHeldFds ||
      !std::ranges::all_of(fds, &UniqueFd::valid))
    return absl::StatusCode::kInvalidArgument;
  Entry* entry = Find(name);
  const size_t before = entry == nullptr ? 0 : entry->fd_count;
  if (fds_ - before + fds.size() > max_fds_ || (entry == nullptr && count_ == kMaxHeldNames))
    return absl::StatusCode::kResourceExhausted;
  if (entry != nullptr) {
    Empty(*entry);
  } else {
    uint16_t* const at = order_.get() + LowerBound(name);
    std::rotate(at, order_.get() + count_, order_.get() + count_ + 1);  // a free one moves here
    ++count_;
    entry = &entries_[*at];
    std::ranges::copy(name, entry->text.begin());
    entry->length = static_cast<uint8_t>(name.size());
  }
  Fill(*entry, fds);
  return absl::StatusCode::kOk;
}

std::span<const UniqueFd> HolderStore::Get(std::string_view name) const {
  const Entry* const entry = Find(name);
  return entry == nullptr ? std::span<const UniqueFd>() : entry->held();
}

void HolderStore::Drop(std::string_view name) {
  Entry* const entry = Find(name);
  if (entry == nullptr) return;
  Empty(*entry);
  uint16_t* const at = order_.get() + LowerBound(name);
  std::rotate(at, at + 1, order_.get() + count_);
  --count_;
}

void HolderStore::Clear() {
  while (count_ > 0) Drop(entries_[order_[count_ - 1]].name());
}

HolderStore::Answer HolderStore::List(std::string_view prefix, std::string_view after,
                                      std::span<std::byte, kMaxHolderAnswer> out) const {
  Answer answer = Code(absl::StatusCode::kOk, out);
  size_t at = LowerBound(std::max(prefix, after));
  if (at < count_ && !after.empty() && entries_[order_[at]].name() == after) ++at;
  for (; at < count_; ++at) {
    const std::string_view name = entries_[order_[at]].name();
    if (!name.starts_with(prefix)) break;
    if (answer.bytes + 1 + name.size() > out.size()) {
      out[1] = std::byte{1};
      break;
    }
    out[answer.bytes] = static_cast<std::byte>(name.size());
    std::ranges::copy(AsBytes(name), out.begin() + static_cast<ptrdiff_t>(answer.bytes + 1));
    answer.bytes += 1 + name.size();
  }
  return answer;
}

absl::StatusCode HolderStore::Change(Requester from, HolderOperation operation,
                                     std::string_view name, std::span<UniqueFd> fds) {
  if (!IsHeldName(name)) return absl::StatusCode::kInvalidArgument;
  if (!MayChange(from, name)) return absl::StatusCode::kPermissionDenied;
  if (operation == HolderOperation::kPut) return Put(name, fds);
  Drop(name);
  return absl::StatusCode::kOk;
}

HolderStore::Answer HolderStore::Handle(Requester from, ByteSpan request, std::span<UniqueFd> fds,
                                        std::span<std::byte, kMaxHolderAnswer> out) {
  using absl::StatusCode;
  if (request.size() < kHolderRequestHeader) return Code(StatusCode::kInvalidArgument, out);
  const auto operation = static_cast<HolderOperation>(request[0]);
  const size_t length = static_cast<size_t>(request[1]);
  const std::string_view text = AsText(request.subspan(kHolderRequestHeader));
  const std::string_view name = text.substr(0, length);
  const std::string_view rest = text.substr(name.size());
  if (name.size() != length || (operation != HolderOperation::kPut && !fds.empty()) ||
      (operation != HolderOperation::kList && !rest.empty()))
    return Code(StatusCode::kInvalidArgument, out);
  switch (operation) {
    case HolderOperation::kPut:
    case HolderOperation::kDrop:
      return Code(Change(from, operation, name, fds), out);
    case HolderOperation::kGet: {
      const std::span<const UniqueFd> held = Get(name);
      return Code(held.empty() ? StatusCode::kNotFound : StatusCode::kOk, out, held);
    }
    case HolderOperation::kList:
      if (!IsHeldText(name) || !IsHeldText(rest)) return Code(StatusCode::kInvalidArgument, out);
      return List(name, rest, out);
    case HolderOperation::kQuit: {
      if (from != Requester::kRoot) return Code(StatusCode::kPermissionDenied, out);
      Clear();
      Answer answer = Code(StatusCode::kOk, out);
      answer.quit = true;
      return answer;
    }
  }
  return Code(StatusCode::kInvalidArgument, out);
}

}  // namespace kapsule::control
