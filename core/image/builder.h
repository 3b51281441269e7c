// From a plan to a published image.
#pragma once

#include <filesystem>
#include <functional>
#include <vector>

#include "core/crypt/keys.h"
#include "core/image/progress.h"
#include "core/model/plan.h"
#include "core/oci/image_store.h"

namespace kapsule::image {

struct BuildOptions {
  // Whose private keys will open the layers; empty: nothing is encrypted.
  std::vector<crypt::Key> recipients = {};
  uint32_t chunk_size = 64 * 1024;
  int64_t mtime = 0;  // of every file and of the image; seconds since 1970
  // A runtime image to go on top; null: none. Not owned.
  oci::ImageSource* base = nullptr;
  std::filesystem::path temp_folder = "/tmp";
  // Asked after each piece; true ends the build with Cancelled.
  std::function<bool()> cancelled = [] { return false; };
};

struct BuiltLayer {
  oci::Descriptor descriptor;
  oci::Digest diff_id;
};

struct BuiltImage {
  oci::Digest digest;  // of the manifest
  uint64_t size = 0;   // of manifest, config and all layers
  std::vector<BuiltLayer> layers;
};

// Streams every layer to `target`, then config and manifest. Layer 0 is plain
// always, the base's layers stay as they are; all others are encrypted where
// there are recipients, each under a fresh key. A build without recipients is
// reproducible byte for byte. After an error `target` has no new manifest.
//   FailedPrecondition  a weight file changed since it was planned
//   Cancelled           options.cancelled said so
//   others              of the files, of `target` and of the base
absl::StatusOr<BuiltImage> Build(const model::Plan& plan, const BuildOptions& options,
                                 oci::ImageTarget& target, Progress& progress);

}  // namespace kapsule::image
