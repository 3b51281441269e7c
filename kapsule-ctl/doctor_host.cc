#include "kapsule-ctl/doctor_host.h"

#include <fcntl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "core/base/file.h"

namespace kapsule::ctl {
namespace {

std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

Finding Root(const NodeSettings&) {
  if (geteuid() == 0) return Good("running as root");
  return Bad("not running as root: mounts cannot be tried",
             "run kapsule-ctl doctor as root; kapsule-snapshotter needs root as well");
}

Finding Kernel(const NodeSettings&) {
  utsname name;
  if (uname(&name) != 0) return Bad("uname failed", "");
  return JudgeKernel(name.release);
}

Finding Fuse(const NodeSettings&) {
  const absl::StatusOr<UniqueFd> device = OpenFile("/dev/fuse", O_RDWR);
  if (device.ok()) return Good("/dev/fuse opens");
  return Bad(Message(device.status()),
             "load the module (modprobe fuse); in a container, give it the host's /dev/fuse");
}

Check RequestTimeout(const std::string& title, const std::string& name) {
  return {title, false, [name](const NodeSettings&) {
            return JudgeRequestTimeout(name, FirstLine("/proc/sys/fs/fuse/" + name));
          }};
}

}  // namespace

Finding JudgeKernel(const std::string& release) {
  int major = 0, minor = 0;
  if (std::sscanf(release.c_str(), "%d.%d", &major, &minor) != 2)
    return Warn("Linux " + release + ", a version that is not understood", "");
  const std::string seen = "Linux " + release;
  if (major > 5 || (major == 5 && minor >= 8)) return Good(seen);
  return Bad(seen, "loop devices with direct I/O need Linux 5.8 or later: update the kernel");
}

Finding JudgeRequestTimeout(const std::string& name, const std::string& value) {
  if (value.empty()) return Good("this kernel has no fs.fuse." + name);
  if (value == "0") return Good("0: no request is cut off");
  return Bad(fmt::format("{} s: when one read takes longer, because a key is waited for or a disk"
                         " hangs, the kernel ends the mounts of all models",
                         value),
             fmt::format("sysctl -w fs.fuse.{}=0, and in /etc/sysctl.d", name));
}

std::vector<Check> HostChecks() {
  return {{"root", false, Root},
          {"kernel", false, Kernel},
          {"fuse", true, Fuse},
          RequestTimeout("request timeout", "default_request_timeout"),
          RequestTimeout("longest timeout", "max_request_timeout")};
}

}  // namespace kapsule::ctl
