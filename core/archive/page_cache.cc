#include "core/archive/page_cache.h"

#include <utility>

namespace kapsule::archive {
namespace {

// What a page costs beside its bytes: the pages of small layers are small.
constexpr size_t kOverhead = 256;

size_t CostOf(const PageCache::Page& page) { return page->size() + kOverhead; }

}  // namespace

PageCache::Page PageCache::Find(const Key& key) {
  const absl::MutexLock lock(&mu_);
  const auto found = pages_.find(key);
  if (found == pages_.end()) return nullptr;
  uses_.splice(uses_.begin(), uses_, found->second.use);
  return found->second.page;
}

void PageCache::Keep(const Key& key, Page page) {
  const absl::MutexLock lock(&mu_);
  if (pages_.contains(key)) return;  // another thread was faster
  uses_.push_front(key);
  used_ += CostOf(page);
  pages_[key] = {std::move(page), uses_.begin()};
  while (used_ > limit_ && uses_.size() > 1) Drop(pages_.find(uses_.back()));
}

void PageCache::Forget(uint64_t owner) {
  const absl::MutexLock lock(&mu_);
  for (auto it = pages_.lower_bound({owner, 0}); it != pages_.end() && it->first.owner == owner;)
    it = Drop(it);
}

PageCache::Pages::iterator PageCache::Drop(Pages::iterator it) {
  used_ -= CostOf(it->second.page);
  uses_.erase(it->second.use);
  return pages_.erase(it);
}

size_t PageCache::bytes() const {
  const absl::MutexLock lock(&mu_);
  return used_;
}

}  // namespace kapsule::archive
