#include "snapshotter/fuse/served_view.h"

#include <utility>

#include "core/base/log.h"

namespace kapsule::fuse {

ServedView::ServedView(const oci::Digest& digest, std::unique_ptr<view::Image> image,
                       LayerPtr layer)
    : digest_(digest), name_(digest.hex()), image_(std::move(image)), layer_(std::move(layer)) {}

LayerPtr ServedView::layer() const {
  absl::MutexLock lock(&mu_);
  return layer_;
}

absl::Status ServedView::SetLayer(LayerPtr layer) const {
  const archive::IndexHeader& header = layer->header();
  if (header.tar_length != tar_length() || header.encrypted != encrypted())
    return InvalidArgument("layer {} is not the one that its view was made from", digest_.text());
  std::vector<std::function<void()>> waiting;
  {
    absl::MutexLock lock(&mu_);
    if (layer_ == nullptr) layer_ = std::move(layer);
    waiting.swap(waiting_);
  }
  for (const std::function<void()>& then : waiting) then();
  return absl::OkStatus();
}

void ServedView::FailLayer(const absl::Status& why) const {
  std::vector<std::function<void()>> waiting;
  bool first = false;
  {
    absl::MutexLock lock(&mu_);
    if (layer_ != nullptr) return;
    first = !std::exchange(failed_, true);
    waiting.swap(waiting_);
  }
  if (first)
    log::error("layer {}: reads fail, its key did not come back: {}", digest_.text(),
               Describe(why));
  for (const std::function<void()>& then : waiting) then();
}

void ServedView::WhenDecided(std::function<void()> then) const {
  {
    absl::MutexLock lock(&mu_);
    if (layer_ == nullptr && !failed_) {
      waiting_.push_back(std::move(then));
      return;
    }
  }
  then();
}

void ServedView::LogFailure(uint64_t offset, const absl::Status& error) const {
  const std::string text = Describe(error);
  bool last = false;
  {
    absl::MutexLock lock(&mu_);
    if (logged_.size() >= kMaxLogged || !logged_.insert(text).second) return;
    last = logged_.size() == kMaxLogged;
  }
  log::error("layer {}: read at byte {} of its view: {}", digest_.text(), offset, text);
  if (last)
    log::error("layer {}: too many different errors; the following are not logged", digest_.text());
}

}  // namespace kapsule::fuse
