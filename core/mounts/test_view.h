// For tests: an EROFS image that stands for a view.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/base/status.h"

namespace kapsule {

// Makes `image` with mkfs.erofs: a tree of one file "hello" with `content`.
absl::Status MakeErofsImage(const std::filesystem::path& image, const std::string& content);

// /sys/block/loopN of the loop devices whose file has `part` in its path.
std::vector<std::filesystem::path> LoopsWith(const std::string& part);

}  // namespace kapsule
