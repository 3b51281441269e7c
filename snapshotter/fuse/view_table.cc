#include "snapshotter/fuse/view_table.h"

#include "core/base/log.h"

namespace kapsule::fuse {
namespace {

constexpr uint64_t kLastReservedNode = 2;  // 1 is the root, 2 the offset of ".."

bool IsNeeded(const SharedView& shared) {
  return shared.used.load() != 0 && (shared.listed.load() != 0 || shared.handles.load() != 0);
}

std::string NameIn(const SharedView& shared) { return oci::Digest(shared.digest).hex(); }

}  // namespace

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

std::vector<std::string> ViewTable::Remembered() {
  std::vector<std::string> names;
  absl::MutexLock lock(&mu_);
  for (SharedView& shared : memory_.views()) {
    if (IsNeeded(shared)) {
      names.push_back(NameIn(shared));
    } else {
      shared.used.store(0);
    }
  }
  return names;
}

size_t ViewTable::Restore(const std::vector<ViewPtr>& views) {
  std::map<std::string, ViewPtr> by_name;
  for (const ViewPtr& view : views) by_name.emplace(view->name(), view);
  std::vector<std::string> lost;
  size_t known;
  {
    absl::MutexLock lock(&mu_);
    const std::span<SharedView> places = memory_.views();
    for (uint32_t i = static_cast<uint32_t>(places.size()); i-- > 0;) {
      if (IsNeeded(places[i])) {
        const auto it = by_name.find(NameIn(places[i]));
        if (it != by_name.end() && TakeUp(i, it->second)) continue;
        lost.push_back(NameIn(places[i]));
      }
      places[i].used.store(0);
      free_.push_back(i);
    }
    known = entries_.size();
  }
  for (const std::string& name : lost)
    log::error("layer sha256:{}: its view is lost, reads of it fail", name);
  return known;
}

bool ViewTable::TakeUp(uint32_t index, ViewPtr view) {
  const uint64_t node = NodeOf(view->name());
  if (node == 0) return false;
  const uint64_t bytes = view->image().stored_size();
  const bool added =
      entries_.try_emplace(node, Entry{std::move(view), index, &memory_.views()[index]}).second;
  if (added) metadata_ += bytes;  // whatever the limit: it is there
  return added;
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
  entry.shared->listed.store(1);
  return absl::OkStatus();
}

absl::Status ViewTable::Add(uint64_t node, ViewPtr view) {
  const uint64_t bytes = view->image().stored_size();
  if (metadata_ > max_metadata_ || bytes > max_metadata_ - metadata_)
    return ResourceExhausted(
        "the view of layer {} has {} bytes of metadata, those of {} open layers have {}: the limit "
        "for all together is {}",
        view->digest().text(), bytes, entries_.size(), metadata_, max_metadata_);
  if (free_.empty())
    return ResourceExhausted("{} layers are open, which is the limit", entries_.size());
  const uint32_t index = free_.back();
  SharedView& shared = memory_.views()[index];
  shared.digest = view->digest().raw();
  shared.generation.fetch_add(1);
  shared.handles.store(0);
  shared.listed.store(1);
  entries_.emplace(node, Entry{std::move(view), index, &shared});
  free_.pop_back();
  metadata_ += bytes;
  shared.used.store(1);
  return absl::OkStatus();
}

ViewPtr ViewTable::Erase(Entries::iterator it) {
  Entry& entry = it->second;
  entry.shared->used.store(0);
  free_.push_back(entry.index);
  ViewPtr view = std::move(entry.view);
  metadata_ -= view->image().stored_size();
  entries_.erase(it);
  return view;
}

void ViewTable::Forget(ViewPtr last) const {
  if (last != nullptr && forgotten_) forgotten_(last->name());
}

void ViewTable::Withdraw(std::string_view name) {
  ViewPtr last;
  {
    absl::MutexLock lock(&mu_);
    for (Opening* opening : openings_)
      if (opening->name_ == name) opening->withdrawn_ = true;
    if (Find(name) == nullptr) return;
    const auto it = entries_.find(NodeOf(name));
    it->second.shared->listed.store(0);
    if (it->second.handles() == 0) last = Erase(it);
  }
  Forget(std::move(last));
}

ViewPtr ViewTable::Known(std::string_view name) const {
  absl::MutexLock lock(&mu_);
  const Entry* entry = Find(name);
  return entry != nullptr ? entry->view : nullptr;
}

ViewPtr ViewTable::Listed(std::string_view name) const {
  absl::MutexLock lock(&mu_);
  const Entry* entry = Find(name);
  return entry != nullptr && entry->listed() ? entry->view : nullptr;
}

ViewPtr ViewTable::OfNode(uint64_t node) const {
  absl::MutexLock lock(&mu_);
  const auto it = entries_.find(node);
  return it != entries_.end() ? it->second.view : nullptr;
}

ViewPtr ViewTable::OfHandle(uint64_t node, uint64_t handle) const {
  absl::MutexLock lock(&mu_);
  const auto it = entries_.find(node);
  if (it == entries_.end() || it->second.handle() != handle) return nullptr;
  return it->second.handles() > 0 ? it->second.view : nullptr;
}

std::optional<uint64_t> ViewTable::OpenHandle(uint64_t node, const RequestSlot& slot) {
  absl::MutexLock lock(&mu_);
  const auto it = entries_.find(node);
  if (it == entries_.end() || !it->second.listed()) return std::nullopt;
  const Entry& entry = it->second;
  slot.SetHandles(*entry.shared, entry.index, entry.handles() + 1);
  return entry.handle();
}

void ViewTable::ReleaseHandle(uint64_t node, uint64_t handle, const RequestSlot& slot) {
  ViewPtr last;
  {
    absl::MutexLock lock(&mu_);
    const auto it = entries_.find(node);
    if (it == entries_.end()) return;
    const Entry& entry = it->second;
    if (entry.handle() != handle || entry.handles() == 0) return;
    slot.SetHandles(*entry.shared, entry.index, entry.handles() - 1);
    if (entry.handles() == 0 && !entry.listed()) last = Erase(it);
  }
  Forget(std::move(last));
}

std::vector<ViewPtr> ViewTable::List(uint64_t after, size_t limit) const {
  std::vector<ViewPtr> views;
  absl::MutexLock lock(&mu_);
  for (auto it = entries_.upper_bound(after); it != entries_.end() && views.size() < limit; ++it)
    if (it->second.listed()) views.push_back(it->second.view);
  return views;
}

}  // namespace kapsule::fuse
