#include "snapshotter/fuse/bind_symbols.h"

#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace kapsule::fuse {
namespace {

constexpr char kVariable[] = "LD_BIND_NOW";

}  // namespace

absl::Status BindSymbolsNow(char** argv) {
  const char* const set = std::getenv(kVariable);
  if (set != nullptr && *set != '\0') {
    // The name that execve() gave, which is that of the link below.
    const char* const slash = std::strrchr(argv[0], '/');
    prctl(PR_SET_NAME, slash == nullptr ? argv[0] : slash + 1);
    return absl::OkStatus();
  }
  if (setenv(kVariable, "1", 1) != 0) return ErrnoStatus(errno, kVariable);
  // Not argv[0]: that path may hold another version by now.
  execv("/proc/self/exe", argv);
  return ErrnoStatus(errno, "start /proc/self/exe with LD_BIND_NOW");
}

}  // namespace kapsule::fuse
