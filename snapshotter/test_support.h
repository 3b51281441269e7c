// For tests: a folder of one's own, and mounts as containerd makes them.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "core/base/file.h"
#include "snapshotter/snapshot.h"

namespace kapsule::snapshotter {

class TempDir {
 public:
  TempDir() {
    std::string name = "/tmp/kapsule-snapshotter-XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  ~TempDir() { EXPECT_TRUE(RemoveTree(path_).ok()); }
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

// Mounted as long as it lives, at a folder that it makes.
class Mounted {
 public:
  Mounted(const Mount& mount, std::filesystem::path target) : target_(std::move(target)) {
    std::filesystem::create_directories(target_);
    unsigned long flags = 0;
    std::string data;
    for (const std::string& option : mount.options) {
      if (option == "ro")
        flags |= MS_RDONLY;
      else if (option == "rbind")
        flags |= MS_BIND | MS_REC;
      else if (option != "rw")
        data += (data.empty() ? "" : ",") + option;
    }
    // The kernel makes a bind mount read-only in a second step.
    const bool bind = (flags & MS_BIND) != 0;
    const auto read_only = static_cast<unsigned long>(MS_RDONLY);
    Do(mount, bind ? flags & ~read_only : flags, data);
    if (bind && (flags & read_only) != 0) Do(mount, flags | MS_REMOUNT, data);
  }
  Mounted(const Mounted&) = delete;
  ~Mounted() { EXPECT_EQ(umount2(target_.c_str(), 0), 0) << strerror(errno); }
  std::filesystem::path operator/(const std::string& name) const { return target_ / name; }

 private:
  void Do(const Mount& mount, unsigned long flags, const std::string& data) {
    EXPECT_EQ(
        ::mount(mount.source.c_str(), target_.c_str(), mount.type.c_str(), flags, data.c_str()), 0)
        << strerror(errno) << ": " << data;
  }
  std::filesystem::path target_;
};

inline bool Write(const std::filesystem::path& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  return file.flush().good();
}

inline std::string Read(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline std::vector<std::string> NamesOf(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    names.push_back(entry.path().filename());
  return names;
}

}  // namespace kapsule::snapshotter
