// Files of /proc and /sys: their size is not known before they are read, and
// reading one fails when its process ends. (A std::ifstream then throws out of its
// buffer's iterators.)
#pragma once

#include <filesystem>
#include <string>

namespace kapsule {

inline constexpr size_t kMaxProcFile = 1 << 20;

// All of it, cut at kMaxProcFile; empty where it cannot be read.
std::string ReadProcFile(const std::filesystem::path& path);

}  // namespace kapsule
