#include "snapshotter/fuse/held_views.h"

#include <absl/time/clock.h>

#include <utility>

#include "core/base/log.h"

namespace kapsule::fuse {
namespace {

std::string HeldName(const std::string& name) {
  return std::string(control::kHeldViewPrefix) + name;
}

}  // namespace

HeldViews::Claim::Claim(HeldViews& held, std::string name) : held_(held), name_(std::move(name)) {
  const auto is_free = [this] {
    held_.mu_.AssertReaderHeld();
    return held_.claims_.count(name_) == 0;
  };
  absl::MutexLock lock(&held_.mu_);
  held_.mu_.Await(absl::Condition(&is_free));
  held_.claims_.emplace(name_, Recheck::kNo);
}

void HeldViews::Claim::Put(int image, int record, int blob) const {
  {
    // A failed opening has something to take back.
    absl::MutexLock lock(&held_.mu_);
    held_.claims_[name_] = Recheck::kYes;
  }
  const absl::Status status = held_.holder_.Put(HeldName(name_), {image, record, blob});
  if (absl::IsUnavailable(status)) {
    held_.SayOnce(status);
  } else if (!status.ok()) {
    log::error("layer sha256:{} will not outlive this process: {}", name_, Describe(status));
  }
}

absl::StatusOr<UniqueFd> HeldViews::Claim::Record() const {
  absl::StatusOr<std::vector<UniqueFd>> fds = held_.holder_.Get(HeldName(name_));
  if (!fds.ok() || fds->size() != 3)
    return Unavailable(
        "the holder does not give the annotations that the layer was opened with: {}",
        fds.ok() ? "wrong number of descriptors" : Describe(fds.status()));
  return std::move((*fds)[1]);
}

void HeldViews::SayOnce(const absl::Status& error) {
  {
    absl::MutexLock lock(&mu_);
    if (std::exchange(said_, true)) return;
  }
  log::error(
      "kapsule-holder is gone: what is mounted is served on, but ends with this process ({})",
      Describe(error));
}

bool HeldViews::TryClaim(const std::string& name) {
  absl::MutexLock lock(&mu_);
  const auto [it, added] = claims_.emplace(name, Recheck::kYes);
  it->second = Recheck::kYes;
  return added;
}

void HeldViews::Forget(const std::string& name) {
  chores_.AddAt(absl::Now(), [this, name] {
    // Where another has the claim, it looks again at its end.
    if (TryClaim(name)) Release(name);
  });
}

void HeldViews::Release(const std::string& name) {
  for (;;) {
    {
      absl::MutexLock lock(&mu_);
      const auto it = claims_.find(name);
      if (std::exchange(it->second, Recheck::kNo) == Recheck::kNo) {
        claims_.erase(it);
        return;
      }
    }
    if (views_.Known(name) != nullptr) continue;
    const absl::Status status = holder_.Drop(HeldName(name));
    if (!status.ok()) SayOnce(status);
  }
}

}  // namespace kapsule::fuse
