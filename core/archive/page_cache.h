// Checked index pages of many layers, together in a bounded amount of memory.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <compare>
#include <cstdint>
#include <list>
#include <map>
#include <memory>

#include "core/base/bytes.h"

namespace kapsule::archive {

// The least recently used pages are dropped first. Thread-safe.
class PageCache {
 public:
  // `page` is any number that its owner knows a page by.
  struct Key {
    uint64_t owner = 0;
    uint64_t page = 0;
    auto operator<=>(const Key&) const = default;
  };
  using Page = std::shared_ptr<const Bytes>;

  // Pages of up to `limit` bytes are kept, and one where that is larger.
  explicit PageCache(size_t limit) : limit_(limit) {}

  Page Find(const Key& key) ABSL_LOCKS_EXCLUDED(mu_);  // null where it is not there
  void Keep(const Key& key, Page page) ABSL_LOCKS_EXCLUDED(mu_);
  void Forget(uint64_t owner) ABSL_LOCKS_EXCLUDED(mu_);  // all its pages
  size_t bytes() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Cached {
    Page page;
    std::list<Key>::iterator use;
  };
  using Pages = std::map<Key, Cached>;
  Pages::iterator Drop(Pages::iterator it) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const size_t limit_;
  mutable absl::Mutex mu_;  // map access only
  Pages pages_ ABSL_GUARDED_BY(mu_);
  std::list<Key> uses_ ABSL_GUARDED_BY(mu_);  // most recent first
  size_t used_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace kapsule::archive
