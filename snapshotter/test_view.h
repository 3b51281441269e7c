// For tests: an EROFS image that stands for a view.
#pragma once

#include <filesystem>
#include <string>

#include "core/base/status.h"

namespace kapsule::snapshotter {

// Makes `image` with mkfs.erofs: a tree of one file "hello" with `content`.
absl::Status MakeErofsImage(const std::filesystem::path& image, const std::string& content);

// Whether a file system of type erofs is mounted at exactly `path`.
bool IsErofsMount(const std::filesystem::path& path);

}  // namespace kapsule::snapshotter
