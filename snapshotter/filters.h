// containerd's list filters: selectors joined by commas must all match; of
// several filters one must. A selector is a field (name, parent, kind,
// labels.<name>, labels."<name>"), alone to ask for its presence, or with ==,
// != or ~= (regular expression) and a value, bare or quoted.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/status.h"
#include "snapshotter/snapshot.h"

namespace kapsule::snapshotter {

// Immutable, so thread-safe.
class Filters {
 public:
  // No filter, or an empty one, matches everything.
  //   InvalidArgument  says which filter is wrong, where and how
  static absl::StatusOr<Filters> Parse(const std::vector<std::string>& filters);
  Filters(Filters&&) noexcept;
  ~Filters();

  bool Match(const Info& info) const;

 private:
  struct Selector;
  class Parser;
  using Conjunction = std::vector<Selector>;

  Filters();

  std::vector<Conjunction> any_;
};

}  // namespace kapsule::snapshotter
