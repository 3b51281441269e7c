// Configuration of kapsule-snapshotter: a TOML file, then the command line.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/base/status.h"

namespace kapsule::snapshotter {

struct Config {
  std::filesystem::path root = "/var/lib/kapsule";
  std::filesystem::path address = "/run/kapsule/snapshotter.sock";
  // The name under which containerd's config lists this snapshotter.
  std::string snapshotter_name = "kapsule";

  std::filesystem::path containerd_address = "/run/containerd/containerd.sock";
  // Where containerd's content store keeps blobs/sha256/….
  std::filesystem::path content_root = "/var/lib/containerd/io.containerd.content.v1.content";

  std::filesystem::path keyprovider_socket = "/run/kapsule-keys/keys.sock";

  std::filesystem::path fuse_program;      // empty: kapsule-fuse beside this program
  std::string fuse_user = "kapsule-fuse";  // a name or a number

  // How views are mounted: "auto", "file" or "loop" (ViewMount).
  std::string view_mount = "auto";

  // How long a container's Prepare and Mounts wait for the layers of a chain.
  int64_t open_timeout_ms = 10'000;
  // How long the look-up of an image may take when containerd sends no labels.
  int64_t lookup_timeout_ms = 2'000;
  // How long reads wait for a layer key that a new kapsule-fuse asks for again.
  int64_t key_grace_ms = 60'000;
  // How long an upgrade waits until the new kapsule-fuse has the keys of all layers.
  int64_t upgrade_timeout_ms = 30'000;
  // After how long a kapsule-fuse that is stuck is killed and succeeded; 0: never.
  int64_t stuck_after_ms = 10'000;
  // After how long without snapshotter and kapsule-fuse the holder ends; 0: never.
  int64_t abandon_after_ms = 600'000;

  // Threads of kapsule-fuse that answer reads (0: one for each processor, at most
  // 4), and that read the disk for them.
  int64_t workers = 0;
  int64_t io_threads = 6;
  // Memory of kapsule-fuse for all layers together, in bytes: ciphertext that is
  // read ahead for sequential readers, verified chunks, and pages of indexes.
  int64_t read_ahead_bytes = 32 << 20;
  int64_t chunk_cache_bytes = 32 << 20;
  int64_t index_cache_bytes = 8 << 20;

  // Blobs that containerd has not downloaded are read from their registries by
  // kapsule-fetch, into a cache of its own.
  std::filesystem::path fetch_program;       // empty: kapsule-fetch beside this program
  std::string fetch_user = "kapsule-fetch";  // a name or a number
  std::filesystem::path fetch_cache = "/var/cache/kapsule";
  int64_t fetch_cache_bytes = int64_t{64} << 30;
  // Whether the rest of an open blob is fetched too: "off", "idle" or "eager".
  std::string fetch_fill = "idle";
  int64_t fetch_connections = 8;
  // How long a read waits for its registry.
  int64_t fetch_timeout_ms = 60'000;
  // How long such reads wait while there is no kapsule-fetch.
  int64_t fetch_grace_ms = 60'000;
  // containerd's folder of hosts.toml files; empty: none.
  std::filesystem::path hosts_dir = "/etc/containerd/certs.d";
  // Who kapsule-fetch is at registries, in this order, after whom CRI pulled an image as:
  // kubelet's credential provider plugins, pull secrets, Docker's configuration files.
  std::filesystem::path credential_provider_config, credential_provider_bin_dir;
  std::vector<std::string> pull_secrets, docker_configs;
  // Where kubelet's --image-service-endpoint points to, to learn whom CRI pulls an
  // image as; empty: nowhere.
  std::filesystem::path cri_image_socket;

  // Where /metrics and /healthz are served ("127.0.0.1:9465" or the path of a unix
  // socket); empty: nowhere. And whether other machines may connect.
  std::string metrics_address;
  bool metrics_allow_remote = false;

  std::string log_level = "info";

  bool operator==(const Config&) const = default;
};

// The keys of a file: the names above.
std::vector<std::string> ConfigKeys();

// Reads a file. Unknown keys and values of another
// type are errors that name the key and line.
absl::StatusOr<Config> LoadConfig(const std::filesystem::path& path);

// Whether the values make sense, wherever they come from.
absl::Status CheckConfig(const Config& config);

}  // namespace kapsule::snapshotter
