#include "snapshotter/layer_table.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace kapsule::snapshotter {

bool IsTransient(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kCancelled:
      return true;
    default:
      return false;
  }
}

std::string LayerTitle(const ModelLayer& layer) {
  return fmt::format("layer {} ({})", layer.depth, layer.label.digest.text());
}

void LayerTable::Add(const ModelLayer& layer) {
  {
    absl::MutexLock lock(&mu_);
    const auto [it, added] = entries_.try_emplace(layer.id);
    if (!added) return;
    it->second.layer = layer;
    it->second.due = absl::Now();
  }
  // Where the record goes after this was asked, Remove() finds the entry.
  const bool recorded = is_recorded_ == nullptr || is_recorded_(layer.id);
  absl::MutexLock lock(&mu_);
  if (!recorded) {
    Erase(layer.id);
  } else if (Entry* entry = Find(layer.id)) {
    entry->recorded = true;
  }
  changed_.SignalAll();
}

std::optional<LayerTable::Work> LayerTable::Take() {
  absl::MutexLock lock(&mu_);
  while (!stopped_) {
    absl::Time next = absl::InfiniteFuture();
    if (auto work = NextWork(absl::Now(), &next)) return work;
    changed_.WaitWithDeadline(&mu_, next);
  }
  return std::nullopt;
}

// `next`: when the first of those that are not due yet will be.
std::optional<LayerTable::Work> LayerTable::NextClose(absl::Time now, absl::Time* next) {
  for (auto it = closing_.begin(); it != closing_.end();) {
    const auto& [digest, due] = *it;
    if (InUse(digest)) {  // a new snapshot has it
      it = closing_.erase(it);
    } else if (due > now || busy_.contains(digest)) {
      if (due > now) *next = std::min(*next, due);
      ++it;
    } else {
      Work work;
      work.generation = generation_;
      work.digest = digest;
      closing_.erase(it);
      busy_.insert(work.digest);
      return work;
    }
  }
  return std::nullopt;
}

std::optional<LayerTable::Work> LayerTable::NextWork(absl::Time now, absl::Time* next) {
  if (auto close = NextClose(now, next)) return close;
  Entry* first = nullptr;
  const auto rank = [now](const Entry& entry) {
    return std::tuple(entry.mounted, entry.awaited_until <= now, entry.due);
  };
  for (auto& [id, entry] : entries_) {
    if (IsSettled(entry) || entry.busy || busy_.contains(entry.layer.label.digest)) continue;
    if (entry.due > now) {
      *next = std::min(*next, entry.due);
    } else if (first == nullptr || rank(entry) < rank(*first)) {
      first = &entry;
    }
  }
  if (first == nullptr) return std::nullopt;
  first->busy = true;
  busy_.insert(first->layer.label.digest);
  checking_ |= first->mounted;
  return Work{generation_,   first->layer.label.digest, first->layer, first->opened, successions_,
              first->mounted};
}

bool LayerTable::IsSettled(const Entry& entry) const {
  if (!entry.recorded) return true;
  return entry.mounted && (checking_ || entry.succession == successions_);
}

LayerTable::Entry* LayerTable::Find(int64_t id) {
  const auto it = entries_.find(id);
  return it == entries_.end() ? nullptr : &it->second;
}

// Null where the layer has been removed or the data plane has died since.
LayerTable::Entry* LayerTable::EntryOf(const Work& work) {
  return work.generation == generation_ ? Find(work.layer->id) : nullptr;
}

bool LayerTable::InUse(const oci::Digest& digest) const {
  return std::any_of(entries_.begin(), entries_.end(),
                     [&](const auto& item) { return item.second.layer.label.digest == digest; });
}

bool LayerTable::BeginMount(const Work& work) {
  absl::MutexLock lock(&mu_);
  Entry* entry = EntryOf(work);
  if (entry == nullptr) return false;
  entry->mounting = true;
  return true;
}

bool LayerTable::Commit(const Work& work, Opened opened) {
  absl::MutexLock lock(&mu_);
  Entry* entry = EntryOf(work);
  if (entry == nullptr) return false;
  entry->mounted = true;
  entry->mounting = entry->busy = false;
  entry->succession = work.succession;
  opened.number = ++openings_;
  entry->opened = std::make_shared<const Opened>(std::move(opened));
  entry->status = absl::OkStatus();
  entry->pause = kFirstPause;
  busy_.erase(work.digest);
  changed_.SignalAll();
  return true;
}

void LayerTable::Fail(const Work& work, const absl::Status& status) {
  absl::MutexLock lock(&mu_);
  busy_.erase(work.digest);
  if (work.check) checking_ = false;
  changed_.SignalAll();
  Entry* entry = Find(work.layer->id);
  if (entry == nullptr) return;
  entry->busy = entry->mounting = false;
  entry->tried = absl::Now();
  if (work.generation != generation_) {  // whatever it was, it was about the old one
    entry->due = entry->tried + kFirstPause;
    return;
  }
  entry->status = status;
  entry->due = IsTransient(status) ? entry->tried + entry->pause : absl::InfiniteFuture();
  entry->pause = std::min(entry->pause * 2, kLongestPause);
}

void LayerTable::Checked(const Work& work, const absl::Status& status) {
  absl::MutexLock lock(&mu_);
  busy_.erase(work.digest);
  checking_ = false;
  changed_.SignalAll();
  Entry* entry = Find(work.layer->id);
  if (entry == nullptr) return;
  entry->busy = false;
  if (work.generation != generation_) return;
  if (!IsTransient(status)) {
    entry->succession = work.succession;
    return;
  }
  entry->due = absl::Now() + entry->pause;
  entry->pause = std::min(entry->pause * 2, kLongestPause);
}

bool LayerTable::Lost(const Work& work) {
  absl::MutexLock lock(&mu_);
  Entry* entry = EntryOf(work);
  if (entry == nullptr) return false;
  entry->mounted = false;
  entry->pause = kFirstPause;
  return true;
}

void LayerTable::Succeeded() {
  absl::MutexLock lock(&mu_);
  ++successions_;
  for (auto& [id, entry] : entries_) {
    if (!entry.mounted) continue;
    entry.due = absl::Now();
    entry.pause = kFirstPause;
  }
  changed_.SignalAll();
}

void LayerTable::Closed(const Work& work, const absl::Status& status) {
  absl::MutexLock lock(&mu_);
  busy_.erase(work.digest);
  if (IsTransient(status)) closing_.emplace(work.digest, absl::Now() + kClosePause);
  changed_.SignalAll();
}

void LayerTable::Remove(int64_t id) {
  absl::MutexLock lock(&mu_);
  const absl::Time patience = absl::Now() + kLongestMount;
  while (const Entry* entry = Find(id)) {
    if (entry->mounting && absl::Now() < patience) {
      changed_.WaitWithDeadline(&mu_, patience);
      continue;
    }
    Erase(id);
    changed_.SignalAll();
  }
}

void LayerTable::Erase(int64_t id) {
  const Entry* const entry = Find(id);
  if (entry == nullptr) return;
  const oci::Digest digest = entry->layer.label.digest;
  entries_.erase(id);
  if (!InUse(digest)) closing_[digest] = absl::Now();
}

void LayerTable::CloseUnneeded(const oci::Digest& digest) {
  absl::MutexLock lock(&mu_);
  closing_[digest] = absl::Now();
  changed_.SignalAll();
}

std::vector<int64_t> LayerTable::Mounted() const {
  std::vector<int64_t> ids;
  for (const auto& [id, entry] : entries_) {
    if (entry.mounted) ids.push_back(id);
  }
  return ids;
}

std::vector<int64_t> LayerTable::Reset() {
  absl::MutexLock lock(&mu_);
  std::vector<int64_t> ids = Mounted();
  ++generation_;
  for (auto& [id, entry] : entries_) {
    entry.mounted = false;
    entry.status = Unavailable("kapsule-fuse has died and is started again");
    entry.tried = absl::Now();
    entry.due = entry.tried + kFirstPause;
    entry.pause = kFirstPause;
  }
  changed_.SignalAll();
  return ids;
}

void LayerTable::Hurry() {
  absl::MutexLock lock(&mu_);
  const absl::Time now = absl::Now();
  for (auto& [id, entry] : entries_) entry.due = std::min(entry.due, now);
  for (auto& [digest, due] : closing_) due = std::min(due, now);
  changed_.SignalAll();
}

absl::StatusOr<LayerTable::Ready> LayerTable::Await(const std::vector<ModelLayer>& chain,
                                                    absl::Time deadline) {
  for (const ModelLayer& layer : chain) Add(layer);
  absl::MutexLock lock(&mu_);
  const absl::Time start = absl::Now();
  while (!stopped_) {
    const absl::Time now = absl::Now();
    Ready ready{generation_, {}};
    absl::Status missing;
    for (const ModelLayer& layer : chain) {
      Entry* entry = Find(layer.id);
      if (entry == nullptr) return Unavailable("{} has been removed", LayerTitle(layer));
      ready.opened.push_back(entry->opened);
      if (entry->mounted) continue;
      entry->awaited_until = std::max(entry->awaited_until, deadline);
      // A final failure is tried once more, and at most once a second.
      if (entry->failed() && entry->tried > std::min(start, now - kAwaitedPause))
        return entry->status;
      if (!entry->busy && entry->due > std::max(now, entry->tried + kAwaitedPause)) {
        entry->due = std::max(now, entry->tried + kAwaitedPause);
        changed_.SignalAll();
      }
      if (missing.ok()) {
        missing = entry->status.ok() ? Unavailable("{} is not open yet", LayerTitle(layer))
                                     : Unavailable("{}", Message(entry->status));
      }
    }
    if (missing.ok()) return ready;
    if (now >= deadline) return missing;
    changed_.WaitWithDeadline(&mu_, std::min(deadline, now + kAwaitedPause));
  }
  return Unavailable("kapsule-snapshotter is stopping");
}

std::map<std::string, size_t> LayerTable::States() const {
  std::map<std::string, size_t> states = {
      {"mounted", 0}, {"opening", 0}, {"waiting", 0}, {"failed", 0}};
  absl::MutexLock lock(&mu_);
  for (const auto& [id, entry] : entries_) {
    const char* const state = entry.mounted    ? "mounted"
                              : entry.busy     ? "opening"
                              : entry.failed() ? "failed"
                                               : "waiting";
    ++states[state];
  }
  return states;
}

std::map<int64_t, oci::Digest> LayerTable::Digests() const {
  absl::MutexLock lock(&mu_);
  std::map<int64_t, oci::Digest> digests;
  for (const auto& [id, entry] : entries_) digests.emplace(id, entry.layer.label.digest);
  return digests;
}

uint64_t LayerTable::generation() const {
  absl::MutexLock lock(&mu_);
  return generation_;
}

std::vector<int64_t> LayerTable::Stop() {
  absl::MutexLock lock(&mu_);
  stopped_ = true;
  changed_.SignalAll();
  return Mounted();
}

}  // namespace kapsule::snapshotter
