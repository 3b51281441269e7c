// The views that a predecessor left with the holder.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/control/holder_wire.h"
#include "snapshotter/fuse/key_fetcher.h"
#include "snapshotter/fuse/view_table.h"

namespace kapsule::fuse {

// Not thread-safe.
class ViewRestorer {
 public:
  // Both outlive it.
  ViewRestorer(const control::Holder& holder, KeyFetcher& keys) : holder_(holder), keys_(keys) {}

  struct Prepared {
    std::vector<ViewPtr> views;
    uint32_t not_loaded = 0;  // the log says why
  };
  // Loads every view that the holder has, and asks for their keys. Unavailable:
  // the holder is gone.
  absl::StatusOr<Prepared> Prepare();

  // Gives `views` what it remembers: from the holder, or from Prepare() where
  // the holder still has the same files; forgets everything else, also in the holder.
  // What Prepare() returned must not be kept until then.
  // A view whose content is bad is lost, but the holder keeps it. Returns how
  // many views there are.
  //   Unavailable  the holder is gone
  //   others       a view could not be got: nothing is forgotten, another
  //                process may do better
  absl::StatusOr<size_t> Restore(ViewTable& views);

 private:
  struct Loaded {
    ViewPtr view;
    std::shared_ptr<const HeldLayer> held;  // open: no other file gets their inodes
  };
  absl::StatusOr<std::vector<std::string>> HeldNames() const;
  static absl::StatusOr<bool> IsOf(const Loaded& loaded, const UniqueFd& image,
                                   const HeldLayer& held);
  //   NotFound                        the holder does not have it
  //   InvalidArgument, Unimplemented  its content is bad
  //   others                          the next attempt may end better
  absl::StatusOr<ViewPtr> Load(const std::string& name);

  const control::Holder& holder_;
  KeyFetcher& keys_;
  std::map<std::string, Loaded> loaded_;  // by Prepare()
};

}  // namespace kapsule::fuse
