#include "snapshotter/id_maps.h"

#include <array>
#include <cstdint>
#include <vector>

#include <absl/strings/numbers.h>
#include <absl/strings/str_split.h>
#include <absl/strings/string_view.h>

namespace kapsule::snapshotter {
namespace {

constexpr char kUidMapLabel[] = "containerd.io/snapshot/uidmapping";
constexpr char kGidMapLabel[] = "containerd.io/snapshot/gidmapping";

// Whom the map makes 0, on the host.
absl::StatusOr<uint32_t> RootOf(const char* label, const std::string& map) {
  std::optional<uint32_t> root;
  for (const absl::string_view range : absl::StrSplit(map, ',')) {
    const std::vector<absl::string_view> fields = absl::StrSplit(range, ':');
    std::array<uint32_t, 3> numbers{};
    bool good = fields.size() == numbers.size();
    for (size_t i = 0; good && i < numbers.size(); ++i)
      good = absl::SimpleAtoi(fields[i], &numbers[i]);
    const auto [inside, outside, count] = numbers;
    if (!good || count == 0) return InvalidArgument("label {} is \"{}\"", label, map);
    if (inside == 0) root = outside;
  }
  if (!root) return InvalidArgument("label {} is \"{}\", without root", label, map);
  return *root;
}

}  // namespace

absl::StatusOr<std::optional<IdMaps>> IdMaps::FromLabels(const Labels& labels) {
  const auto uids = labels.find(kUidMapLabel), gids = labels.find(kGidMapLabel);
  if (uids == labels.end() && gids == labels.end()) return std::nullopt;
  if (uids == labels.end() || gids == labels.end())
    return InvalidArgument("of the labels {} and {} one is missing", kUidMapLabel, kGidMapLabel);
  IdMaps maps{uids->second, gids->second};
  ASSIGN_OR_RETURN(maps.root_uid, RootOf(kUidMapLabel, maps.uids));
  ASSIGN_OR_RETURN(maps.root_gid, RootOf(kGidMapLabel, maps.gids));
  return maps;
}

}  // namespace kapsule::snapshotter
