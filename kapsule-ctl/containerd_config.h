// containerd's own configuration, as containerd reads it, and what Kapsule needs of it.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/base/status.h"

namespace kapsule::ctl {

inline constexpr char kContainerdConfig[] = "/etc/containerd/config.toml";

struct ContainerdVersion {
  int major = 0, minor = 0, patch = 0;
  auto operator<=>(const ContainerdVersion&) const = default;

  // "1.6.20~ds1", "v2.2.9"; nullopt for other text.
  static std::optional<ContainerdVersion> Parse(const std::string& text);
};

// CRI's settings about images; nullopt where the file does not say.
struct CriImageSettings {
  std::optional<std::string> snapshotter;
  std::optional<bool> disable_annotations, local_pull;
  std::set<std::string> runtimes;  // those whose own snapshotter is ours
};

struct ContainerdConfig {
  struct Proxy {
    std::string type, address;
    std::map<std::string, std::string> exports;
    std::set<std::string> capabilities;
  };
  std::filesystem::path path;
  int64_t version = 1;
  std::filesystem::path root = "/var/lib/containerd";
  bool cri_disabled = false;
  std::map<std::string, Proxy> proxies;
  // The transfer service's unpack_config: snapshotter -> differ.
  std::map<std::string, std::string> unpacked;
  // Whom the diff service asks, in this order.
  std::vector<std::string> differs = {"walking"};
  // Where containerd 1.x looks, and 2.x in files older than version 3; and 2.x itself.
  CriImageSettings old_cri, new_cri;
  // Without runtimes in the old place containerd 2.x takes over nothing from there.
  bool old_cri_has_runtimes = false;

  // What containerd of that version goes by.
  CriImageSettings CriFor(const ContainerdVersion& containerd) const;
};

// Reads `path` and what it imports: a section of plugins in an imported file replaces
// that of an earlier one as a whole. `snapshotter`: our name.
//   NotFound         no such file
//   InvalidArgument  names file, line and what is wrong
absl::StatusOr<ContainerdConfig> LoadContainerdConfig(const std::filesystem::path& path,
                                                      const std::string& snapshotter);

}  // namespace kapsule::ctl
