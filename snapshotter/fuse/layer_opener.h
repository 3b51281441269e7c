// Opening layers: annotations to key, key to view.
#pragma once

#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <filesystem>
#include <optional>

#include "core/crypt/layer_cipher.h"
#include "core/oci/annotations.h"
#include "snapshotter/fuse/view_table.h"

namespace kapsule::fuse {

// Thread-safe. Calls wait for the keyprovider and the disk.
class LayerOpener {
 public:
  LayerOpener(ViewTable& views, std::filesystem::path keyprovider)
      : views_(views), keyprovider_(std::move(keyprovider)) {}

  struct Layer {
    oci::Digest digest;
    uint64_t size = 0;
    bool encrypted = false;
    UniqueFd blob;         // read-only
    UniqueFd annotations;  // a sealed memfd with JSON
  };

  // Publishes the layer's view and returns its size. A layer that is open
  // already must be opened by the same key, nonce and root.
  //   NotFound, PermissionDenied  no key for this node; another key than before,
  //                               or than the layer's header commits to
  //   ResourceExhausted           no room for the view's metadata
  //   Unimplemented               encrypted, but by a tool that makes no index
  //   Unavailable                 the keyprovider is down
  //   Cancelled                   withdrawn meanwhile
  //   DataLoss, InvalidArgument   the layer is bad
  absl::StatusOr<uint64_t> Open(const ViewTable::Opening& opening, Layer layer,
                                absl::Time deadline);

  // Whether other annotations lead to the key, nonce and root of the open layer.
  //   PermissionDenied  they do not
  //   NotFound          the layer is not open, or no key for this node
  absl::Status Authorise(const oci::Digest& digest, UniqueFd annotations, absl::Time deadline);

 private:
  // What annotations give access to.
  struct Access {
    oci::IndexRef index;
    std::optional<crypt::LayerKey> key;
  };
  absl::StatusOr<Access> Unwrap(const UniqueFd& annotations, bool encrypted,
                                absl::Time deadline) const;
  absl::StatusOr<uint64_t> OpenOnce(const ViewTable::Opening& opening, const Layer& layer,
                                    const Access& access, absl::Time deadline);
  absl::StatusOr<ViewPtr> MakeView(const Layer& layer, const Access& access, absl::Time deadline);

  ViewTable& views_;
  const std::filesystem::path keyprovider_;

  absl::Mutex large_toc_mu_;  // held to parse one and build from it, never over I/O
};

}  // namespace kapsule::fuse
