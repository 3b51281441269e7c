// Opening layers: annotations to key, key to view.
#pragma once

#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <filesystem>
#include <optional>

#include "core/crypt/layer_cipher.h"
#include "core/oci/annotations.h"
#include "snapshotter/fuse/held_views.h"
#include "snapshotter/fuse/view_table.h"

namespace kapsule::fuse {

// Thread-safe. Calls wait for the keyprovider, the disk and the holder.
class LayerOpener {
 public:
  // `views` and `held` outlive it; layers are opened with `shared`.
  LayerOpener(ViewTable& views, HeldViews& held, std::filesystem::path keyprovider,
              const blob::LayerReader::Shared& shared)
      : views_(views), held_(held), keyprovider_(std::move(keyprovider)), shared_(shared) {}

  struct Layer {
    oci::Digest digest;
    uint64_t size = 0;
    bool encrypted = false;
    UniqueFd blob;         // read-only
    UniqueFd annotations;  // a sealed memfd with JSON
  };

  // Publishes the layer's view, after the holder got it, and returns its size. A
  // layer that is open already must be opened by the same key, nonce and root.
  //   NotFound, PermissionDenied  no key for this node; another key than before,
  //                               or than the layer's header commits to
  //   ResourceExhausted           no room for the view's metadata
  //   Unimplemented               encrypted, but by a tool that makes no index
  //   Unavailable                 the keyprovider is down; the layer's own key,
  //                               after a restart, did not come back
  //   Cancelled                   withdrawn meanwhile
  //   DataLoss, InvalidArgument   the layer is bad
  absl::StatusOr<uint64_t> Open(const ViewTable::Opening& opening, Layer layer,
                                absl::Time deadline);

  // Whether other annotations lead to the key, nonce and root of the open layer.
  //   PermissionDenied  they do not
  //   NotFound          the layer is not open, or no key for this node
  //   Unavailable       as above
  absl::Status Authorise(const oci::Digest& digest, UniqueFd annotations, absl::Time deadline);

  // Gives `view`, which a predecessor made, its layer again: the blob and
  // annotations that the holder has. Errors as those of Open().
  absl::Status Reopen(const ServedView& view, const UniqueFd& blob, const UniqueFd& annotations,
                      absl::Time deadline) const;

 private:
  // What annotations give access to.
  struct Access {
    oci::IndexRef index;
    std::optional<crypt::LayerKey> key;
  };
  absl::StatusOr<Access> Unwrap(const UniqueFd& annotations, bool encrypted,
                                absl::Time deadline) const;
  absl::StatusOr<std::unique_ptr<blob::LayerReader>> OpenReader(std::unique_ptr<ReaderAt> blob,
                                                                const Access& access) const;
  absl::Status GiveLayer(const ServedView& view, const HeldViews::Claim& claim, const Layer& layer,
                         const Access& access) const;
  absl::StatusOr<ViewPtr> MakeView(const Layer& layer, const Access& access, absl::Time deadline);

  ViewTable& views_;
  HeldViews& held_;
  const std::filesystem::path keyprovider_;
  const blob::LayerReader::Shared shared_;

  absl::Mutex large_toc_mu_;  // held to parse one and build from it, never over I/O
};

}  // namespace kapsule::fuse
