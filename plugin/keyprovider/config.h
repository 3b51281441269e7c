// Configuration of kapsule-keyprovider: a TOML file, then the command line.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/base/status.h"

namespace kapsule::keyprovider {

struct Config {
  std::filesystem::path keys;  // folder of private keys
  // In a folder of its own, which is all that kapsule-fuse sees of the file system.
  std::filesystem::path address = "/run/kapsule-keys/keys.sock";
  std::filesystem::path grpc_address;  // empty: no gRPC
  std::vector<std::string> allow_uid;  // names or numbers
  std::string log_level = "info";
};

// The file's keys are the command line's words: keys, address, grpc-address,
// allow-uid (one or an array of names or numbers), log-level.
//   InvalidArgument  not TOML, an unknown key or another type; names the line
absl::StatusOr<Config> LoadConfig(const std::filesystem::path& path);

}  // namespace kapsule::keyprovider
