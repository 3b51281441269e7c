// Where the parts of a node are: what kapsule-ctl needs of the snapshotter's config.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "core/base/status.h"

namespace kapsule::ctl {

inline constexpr char kNodeConfig[] = "/etc/kapsule/snapshotter.toml";

// Keys and defaults of configs/kapsule-snapshotter.toml.
struct NodeSettings {
  std::string root = "/var/lib/kapsule";
  std::string address = "/run/kapsule/snapshotter.sock";
  std::string snapshotter_name = "kapsule";
  std::string containerd_address = "/run/containerd/containerd.sock";
  std::string content_root = "/var/lib/containerd/io.containerd.content.v1.content";
  std::string keyprovider_socket = "/run/kapsule-keys/keys.sock";
  std::string fuse_user = "kapsule-fuse";
  std::string view_mount = "auto";
  std::string fetch_user = "kapsule-fetch";
  std::string fetch_cache = "/var/cache/kapsule";
  int64_t fetch_cache_bytes = int64_t{64} << 30;
  std::string hosts_dir = "/etc/containerd/certs.d";

  // Not of that file: containerd's own, where it is named (doctor).
  std::string containerd_config = {};
};

// Keys that are not above are the snapshotter's business.
//   NotFound         no such file
//   InvalidArgument  names file, line and what is wrong
absl::StatusOr<NodeSettings> LoadNodeSettings(const std::filesystem::path& path);

}  // namespace kapsule::ctl
