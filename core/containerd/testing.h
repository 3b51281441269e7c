// For tests: a real containerd with everything of its own, and small images for it.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/oci/manifest.h"

namespace kapsule::containerd {

// containerd with root, state and sockets in a temporary folder and without the
// CRI plugin. Needs root. The destructor ends it and removes the folder.
class TestContainerd {
 public:
  // `config` is added to its config.toml.
  static absl::StatusOr<std::unique_ptr<TestContainerd>> Start(const std::string& config = "");
  ~TestContainerd();

  const std::filesystem::path& dir() const { return dir_; }
  std::filesystem::path socket() const { return dir_ / "containerd.sock"; }
  std::filesystem::path content_root() const {
    return dir_ / "root/io.containerd.content.v1.content";
  }

  // Runs ctr with these arguments. Internal, with its output, where it fails.
  absl::Status Ctr(std::vector<std::string> arguments) const;

  void Stop();
  absl::Status Restart();

 private:
  explicit TestContainerd(std::filesystem::path dir) : dir_(std::move(dir)) {}
  const std::filesystem::path dir_;
  pid_t pid_ = -1;
};

struct TestLayer {
  std::string bytes;
  std::string media_type = oci::kLayerTarType;
  oci::Annotations annotations = {};
  std::optional<oci::Digest> diff_id = {};  // of `bytes` where not given
};

struct TestImage {
  oci::Digest manifest;
  std::vector<oci::Descriptor> layers;
  std::vector<oci::Digest> chain_ids;
};

// A tar that holds one regular file.
std::string OneFileTar(const std::string& name, const std::string& content);

// Imports an image of these layers into namespace `ns` under `name`; with
// `in_index`, as the linux/amd64 entry of an index whose other entry is missing.
absl::StatusOr<TestImage> ImportImage(const TestContainerd& containerd, const std::string& ns,
                                      const std::string& name, const std::vector<TestLayer>& layers,
                                      bool in_index = false);

}  // namespace kapsule::containerd
