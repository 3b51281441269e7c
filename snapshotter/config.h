// Configuration of kapsule-snapshotter: a TOML file, then the command line.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>

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

  std::filesystem::path keyprovider_socket = "/run/kapsule/keys.sock";

  std::filesystem::path fuse_program;      // empty: kapsule-fuse beside this program
  std::string fuse_user = "kapsule-fuse";  // a name or a number

  // How long a container's Prepare and Mounts wait for the layers of a chain.
  int open_timeout_ms = 10'000;
  // How long the look-up of an image may take when containerd sends no labels.
  int lookup_timeout_ms = 2'000;

  std::string log_level = "info";
};

// Reads a file; its keys are the names above. Unknown keys and values of another
// type are errors that name the key and line.
absl::StatusOr<Config> LoadConfig(const std::filesystem::path& path);

// Whether the values make sense, wherever they come from.
absl::Status CheckConfig(const Config& config);

}  // namespace kapsule::snapshotter
