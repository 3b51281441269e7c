// Opening layers: annotations to key, key to view.
#pragma once

#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <filesystem>
#include <optional>

#include "core/crypt/layer_cipher.h"
#include "core/oci/annotations.h"
#include "snapshotter/fuse/fetch_client.h"
#include "snapshotter/fuse/held_views.h"
#include "snapshotter/fuse/view_table.h"

namespace kapsule::fuse {

// Thread-safe. Calls wait for the keyprovider, the disk and the holder.
class LayerOpener {
 public:
  // `views`, `held` and `fetch` outlive it; layers are opened with `shared`.
  LayerOpener(ViewTable& views, HeldViews& held, FetchClient& fetch,
              std::filesystem::path keyprovider, const blob::LayerReader::Shared& shared)
      : views_(views),
        held_(held),
        fetch_(fetch),
        keyprovider_(std::move(keyprovider)),
        shared_(shared) {}

  struct Layer {
    oci::Digest digest;
    uint64_t size = 0;
    bool encrypted = false;
    bool remote = false;  // the blob is kapsule-fetch's file of it
    UniqueFd blob;        // read-only
    UniqueFd record;      // a sealed memfd (control_wire.h)
  };

  // Publishes the layer's view, after the holder got it, and returns its size. A
  // layer that is open already must be opened by the same key, nonce and root. Waits
  // for the TOC of a remote layer; then also the errors of kapsule-fetch come back.
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

  // Gives `view`, which a predecessor made, its layer again: the blob and record
  // that the holder has. Nothing where nobody has the view any more, also while the
  // keyprovider is asked, or an opening was faster. Errors as those of Open(). Waits
  // for no registry.
  absl::Status Reopen(const std::weak_ptr<const ServedView>& view, const UniqueFd& blob,
                      const UniqueFd& record, absl::Time deadline) const;

  // `blob` is kapsule-fetch's file of an open remote layer now, also for successors;
  // nothing where it is not remote. One that is being opened waits for this, but is not
  // open for its caller.
  //   NotFound         the layer is not open, yet
  //   Unavailable      its key has not come back after a restart: try again
  //   InvalidArgument  not such a blob
  absl::Status UseFile(const oci::Digest& digest, const UniqueFd& blob);
  // An open remote layer is read from `blob` from now on, also by successors; nothing
  // where it is not remote.
  //   NotFound         the layer is not open
  //   Unavailable      its key has not come back after a restart; the holder did not
  //                    take it: a successor would still ask kapsule-fetch
  //   InvalidArgument  not such a blob
  absl::Status UseLocal(const oci::Digest& digest, UniqueFd blob);

 private:
  // What annotations give access to.
  struct Access {
    oci::IndexRef index;
    std::optional<crypt::LayerKey> key;
  };
  absl::StatusOr<Access> Unwrap(const UniqueFd& annotations, bool encrypted,
                                absl::Time deadline) const;
  absl::StatusOr<std::unique_ptr<blob::LayerReader>> OpenReader(const oci::Digest& digest,
                                                                const UniqueFd& fd,
                                                                std::optional<uint64_t> size,
                                                                bool remote,
                                                                const Access& access) const;
  absl::StatusOr<Bytes> ReadToc(const oci::Digest& digest, const blob::LayerReader& reader,
                                absl::Time deadline) const;
  absl::Status TellBlob(const oci::Digest& digest, const UniqueFd& fd) const;
  absl::Status UseFileOf(const Layer& layer, const ServedView& view, const HeldViews::Claim& claim,
                         const Access& access) const;
  absl::Status GiveLayer(const ServedView& view, const HeldViews::Claim& claim, const Layer& layer,
                         const Access& access) const;
  absl::StatusOr<ViewPtr> MakeView(const Layer& layer, const Access& access, absl::Time deadline);

  ViewTable& views_;
  HeldViews& held_;
  FetchClient& fetch_;
  const std::filesystem::path keyprovider_;
  const blob::LayerReader::Shared shared_;

  absl::Mutex large_toc_mu_;  // held to parse one and build from it, never over I/O
};

}  // namespace kapsule::fuse
