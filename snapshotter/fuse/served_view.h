// One open layer as a file: EROFS metadata, then the decrypted tar.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <atomic>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/blob/layer_reader.h"
#include "core/oci/digest.h"
#include "core/view/image.h"

namespace kapsule::fuse {

using LayerPtr = std::shared_ptr<const blob::LayerReader>;

// Thread-safe. What it shows never changes; whether it can be read does, so the
// methods that say so are const.
class ServedView {
 public:
  // Without `layer` its key is still to come.
  ServedView(const oci::Digest& digest, std::unique_ptr<view::Image> image,
             LayerPtr layer = nullptr);

  const oci::Digest& digest() const { return digest_; }
  const std::string& name() const { return name_; }  // 64 hex digits
  const view::Image& image() const { return *image_; }
  bool encrypted() const { return image_->seal_files(); }

  uint64_t size() const { return image_->size(); }                    // of the file
  uint64_t metadata_size() const { return image_->metadata_size(); }  // then the tar begins
  uint64_t tar_length() const { return image_->tar_length(); }        // zeros follow

  // Null while a restarted process has not got the key again.
  LayerPtr layer() const ABSL_LOCKS_EXCLUDED(mu_);

  // As Image::ReadMetadata() and Image::ClearGaps().
  absl::Status ReadMetadata(uint64_t offset, MutableByteSpan out) const {
    return image_->ReadMetadata(offset, out);
  }
  absl::Status ClearGaps(uint64_t tar_offset, MutableByteSpan out) const {
    return image_->ClearGaps(tar_offset, out);
  }

  // The key has come; nothing where it had before. InvalidArgument: the layer is
  // not the one of the image.
  absl::Status SetLayer(LayerPtr layer) const ABSL_LOCKS_EXCLUDED(mu_);
  // The key does not come, or not in time: reads fail until it does. `why` is
  // logged the first time.
  void FailLayer(const absl::Status& why) const ABSL_LOCKS_EXCLUDED(mu_);
  // Calls `then` once, when there is a layer or its key has failed: at once in
  // this thread, or later in the one that says so.
  void WhenDecided(std::function<void()> then) const ABSL_LOCKS_EXCLUDED(mu_);

  // Reads of it that wait for its registry: bounded, so that one that never answers
  // leaves others' reads room.
  static constexpr uint32_t kMaxFarReads = 1024;
  bool has_room_for_far_read() const { return far_reads_ < kMaxFarReads; }
  void CountFarRead() const { ++far_reads_; }
  void EndFarRead() const { --far_reads_; }

  // Logs each failure once for every text: that names the chunk. After
  // kMaxLogged of them the layer is only counted as bad.
  void LogFailure(uint64_t offset, const absl::Status& error) const ABSL_LOCKS_EXCLUDED(mu_);
  static constexpr size_t kMaxLogged = 64;

 private:
  const oci::Digest digest_;
  const std::string name_;
  const std::unique_ptr<const view::Image> image_;

  mutable std::atomic<uint32_t> far_reads_ = 0;
  mutable absl::Mutex mu_;
  mutable LayerPtr layer_ ABSL_GUARDED_BY(mu_);
  mutable bool failed_ ABSL_GUARDED_BY(mu_) = false;
  mutable std::vector<std::function<void()>> waiting_ ABSL_GUARDED_BY(mu_);
  mutable std::set<std::string> logged_ ABSL_GUARDED_BY(mu_);
};
using ViewPtr = std::shared_ptr<const ServedView>;

}  // namespace kapsule::fuse
