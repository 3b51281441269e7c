#include "core/mounts/mountinfo.h"

#include <fstream>
#include <sstream>

namespace kapsule {
namespace {

bool IsOctal(const std::string& text) {
  return text.size() == 3 && text.find_first_not_of("01234567") == std::string::npos;
}

// Blank, tab, line feed and backslash are written as \ooo.
std::string Unescape(const std::string& text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    const std::string code = text[i] == '\\' ? text.substr(i + 1, 3) : "";
    if (IsOctal(code)) {
      plain += static_cast<char>(std::stoi(code, nullptr, 8));
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

}  // namespace

std::optional<MountInfo> ParseMountInfo(const std::string& line) {
  std::istringstream words(line);
  MountInfo mount;
  std::string id, parent, root, word;
  words >> id >> parent >> mount.device >> root >> mount.point;
  while (words >> word && word != "-") {
  }
  if (!(words >> mount.type)) return std::nullopt;
  mount.point = Unescape(mount.point);
  return mount;
}

absl::StatusOr<std::vector<MountInfo>> ReadMountInfo() {
  std::ifstream file("/proc/self/mountinfo");
  if (!file) return Internal("/proc/self/mountinfo cannot be read: is /proc mounted?");
  std::vector<MountInfo> mounts;
  for (std::string line; std::getline(file, line);) {
    if (std::optional<MountInfo> mount = ParseMountInfo(line)) mounts.push_back(*std::move(mount));
  }
  return mounts;
}

}  // namespace kapsule
