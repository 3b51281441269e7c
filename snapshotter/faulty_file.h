// A file on a disk that fails, for tests: one FUSE file system with one file, of
// whose bytes a range gives EIO. Needs root.
#pragma once

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>

#include "core/base/file.h"

namespace kapsule::snapshotter::testing {

class FaultyFile {
 public:
  // Shows `bytes` as <folder>/blob-faulty; makes the folder. Dies where it cannot.
  FaultyFile(std::filesystem::path folder, std::string bytes);
  // Unmounts; nobody may have the file open any more.
  ~FaultyFile();

  std::filesystem::path path() const { return folder_ / "blob-faulty"; }
  // Reads that touch [begin, end) fail from now on.
  void Break(uint64_t begin, uint64_t end) {
    bad_begin_ = begin;
    bad_end_ = end;
  }
  void Repair() { Break(0, 0); }

 private:
  void Serve();
  // Fills `body` or sets `error`, an errno.
  void Answer(std::string_view request, std::string& body, int* error) const;

  const std::filesystem::path folder_;
  const std::string bytes_;
  std::atomic<uint64_t> bad_begin_ = 0, bad_end_ = 0;
  UniqueFd fuse_;
  std::thread thread_;
};

}  // namespace kapsule::snapshotter::testing
