// Debian's docker-registry on an ephemeral loopback port with storage in a
// temporary folder, for tests. Ended, and its folder removed, with the object.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <memory>
#include <string>

#include "core/base/status.h"

namespace kapsule::registry {

class TestRegistry {
 public:
  enum class Access { kOpen, kPassword };  // kPassword: kUser and kPassword
  static constexpr char kUser[] = "publisher";
  static constexpr char kPassword[] = "open sesame";

  // `http` is added to the section of that name in its configuration: lines that
  // begin with two spaces.
  static absl::StatusOr<std::unique_ptr<TestRegistry>> Start(Access access = Access::kOpen,
                                                             const std::string& http = "");
  ~TestRegistry();

  std::string host() const { return "127.0.0.1:" + std::to_string(port_); }
  const std::filesystem::path& folder() const { return folder_; }
  // Uploads that were opened in `repository` and neither ended nor deleted.
  size_t OpenUploads(const std::string& repository) const;

 private:
  TestRegistry() = default;
  absl::Status WriteConfig(Access access, const std::string& http) const;
  absl::Status Spawn();

  std::filesystem::path folder_;
  pid_t pid_ = -1;
  int port_ = 0;
};

}  // namespace kapsule::registry
