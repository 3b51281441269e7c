#include "snapshotter/fuse/view_table.h"

#include "core/base/log.h"

namespace kapsule::fuse {
namespace {

constexpr uint64_t kLastReservedNode = 2;  // 1 is the root, 2 the offset of ".."

}  // namespace

absl::Status ServedView::Read(uint64_t offset, MutableByteSpan out) const {
  absl::Status status = view_->Read(offset, out);
  if (!status.ok()) LogFailure(offset, status);
  return status;
}

void ServedView::LogFailure(uint64_t offset, const absl::Status& error) const {
  const std::string text = Describe(error);
  {
    absl::MutexLock lock(&mu_);
    if (logged_.size() >= kMaxLogged || !logged_.insert(text).second) return;
    if (logged_.size() == kMaxLogged)
      log::error("layer {}: too many different errors; the following are not logged",
                 digest_.text());
  }
  log::error("layer {}: read at byte {} of its view: {}", digest_.text(), offset, text);
}

ViewTable::Opening::Opening(ViewTable& table, std::string name)
    : table_(table), name_(std::move(name)) {
  absl::MutexLock lock(&table_.mu_);
  position_ = table_.openings_.insert(table_.openings_.end(), this);
}

ViewTable::Opening::~Opening() {
  absl::MutexLock lock(&table_.mu_);
  table_.openings_.erase(position_);
}

uint64_t ViewTable::NodeOf(std::string_view name) {
  const auto digest = oci::Digest::Parse("sha256:" + std::string(name));
  if (!digest.ok()) return 0;
  // 63 bits: the node is also an offset in the directory, which is signed.
  const uint64_t node = LoadBe64(digest->raw().data()) >> 1;
  return node > kLastReservedNode ? node : 0;
}

const ViewTable::Entry* ViewTable::Find(std::string_view name) const {
  const auto it = entries_.find(NodeOf(name));
  return it != entries_.end() && it->second.view->name() == name ? &it->second : nullptr;
}

absl::Status ViewTable::Publish(const Opening& opening, ViewPtr view) {
  const uint64_t node = NodeOf(view->name());
  if (node == 0) return Internal("layer {} has no node number", view->digest().text());
  absl::MutexLock lock(&mu_);
  if (opening.withdrawn_) return Cancelled("layer {} was closed meanwhile", view->digest().text());
  const auto known = entries_.find(node);
  if (known == entries_.end()) return Add(node, std::move(view));
  Entry& entry = known->second;
  if (entry.view->name() != view->name())
    return Internal("layers {} and {} have the same node number", view->digest().text(),
                    entry.view->digest().text());
  if (entry.view != view) return AlreadyExists("layer {} is open", view->digest().text());
  entry.listed = true;
  return absl::OkStatus();
}

absl::Status ViewTable::Add(uint64_t node, ViewPtr view) {
  const uint64_t bytes = view->metadata_bytes();
  if (bytes > max_metadata_ - metadata_)
    return ResourceExhausted(
        "the view of layer {} has {} bytes of metadata, those of {} open layers have {}: the limit "
        "for all together is {}",
        view->digest().text(), bytes, entries_.size(), metadata_, max_metadata_);
  metadata_ += bytes;
  entries_.emplace(node, Entry{.view = std::move(view), .listed = true});
  return absl::OkStatus();
}

ViewPtr ViewTable::Erase(Entries::iterator it) {
  ViewPtr view = std::move(it->second.view);
  metadata_ -= view->metadata_bytes();
  entries_.erase(it);
  return view;
}

void ViewTable::Withdraw(std::string_view name) {
  ViewPtr last;  // freed after the lock
  absl::MutexLock lock(&mu_);
  for (Opening* opening : openings_)
    if (opening->name_ == name) opening->withdrawn_ = true;
  if (Find(name) == nullptr) return;
  const auto it = entries_.find(NodeOf(name));
  it->second.listed = false;
  if (it->second.handles == 0) last = Erase(it);
}

ViewPtr ViewTable::Known(std::string_view name) const {
  absl::MutexLock lock(&mu_);
  const Entry* entry = Find(name);
  return entry != nullptr ? entry->view : nullptr;
}

ViewPtr ViewTable::Listed(std::string_view name) const {
  absl::MutexLock lock(&mu_);
  const Entry* entry = Find(name);
  return entry != nullptr && entry->listed ? entry->view : nullptr;
}

ViewPtr ViewTable::OfNode(uint64_t node) const {
  absl::MutexLock lock(&mu_);
  const auto it = entries_.find(node);
  return it != entries_.end() ? it->second.view : nullptr;
}

ViewPtr ViewTable::OfHandle(uint64_t node) const {
  absl::MutexLock lock(&mu_);
  const auto it = entries_.find(node);
  return it != entries_.end() && it->second.handles > 0 ? it->second.view : nullptr;
}

bool ViewTable::OpenHandle(uint64_t node) {
  absl::MutexLock lock(&mu_);
  const auto it = entries_.find(node);
  if (it == entries_.end() || !it->second.listed) return false;
  ++it->second.handles;
  return true;
}

void ViewTable::ReleaseHandle(uint64_t node) {
  ViewPtr last;  // freed after the lock
  absl::MutexLock lock(&mu_);
  const auto it = entries_.find(node);
  if (it == entries_.end() || it->second.handles == 0) return;
  if (--it->second.handles == 0 && !it->second.listed) last = Erase(it);
}

std::vector<ViewPtr> ViewTable::List(uint64_t after, size_t limit) const {
  std::vector<ViewPtr> views;
  absl::MutexLock lock(&mu_);
  for (auto it = entries_.upper_bound(after); it != entries_.end() && views.size() < limit; ++it)
    if (it->second.listed) views.push_back(it->second.view);
  return views;
}

}  // namespace kapsule::fuse
