#include "core/daemon/notify.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "core/base/file.h"

namespace kapsule::daemon {
namespace {

constexpr int kFirstPassed = 3, kMaxPassed = 1 << 16;

// Whoever does not hear it goes by the process's life.
void Notify(std::string_view text) {
  const char* const variable = std::getenv("NOTIFY_SOCKET");
  const std::string_view name = variable == nullptr ? "" : variable;
  sockaddr_un address{};
  if (name.size() < 2 || (name[0] != '/' && name[0] != '@') ||
      name.size() >= sizeof(address.sun_path))
    return;
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, name.data(), name.size());
  const bool abstract = name[0] == '@';
  if (abstract) address.sun_path[0] = '\0';
  // An abstract name ends with its last byte, a path with a NUL.
  const size_t length = offsetof(sockaddr_un, sun_path) + name.size() + (abstract ? 0 : 1);
  const UniqueFd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return;
  sendto(socket.get(), text.data(), text.size(), MSG_NOSIGNAL,
         reinterpret_cast<const sockaddr*>(&address), static_cast<socklen_t>(length));
}

// -1 where it is none.
int NumberIn(const char* variable) {
  const char* const text = std::getenv(variable);
  const std::string_view digits = text == nullptr ? "" : text;
  int number = -1;
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  return parsed.ec == std::errc() && parsed.ptr == digits.data() + digits.size() ? number : -1;
}

}  // namespace

void NotifyReady() { Notify("READY=1"); }

void NotifyReloading() {
  // Newer systemd wants the time, to tell this reload from an earlier one.
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  Notify("RELOADING=1\nMONOTONIC_USEC=" +
         std::to_string(int64_t{now.tv_sec} * 1'000'000 + now.tv_nsec / 1000));
}

void NotifyStopping() { Notify("STOPPING=1"); }

void NotifyStatus(const std::string& text) { Notify("STATUS=" + text); }

std::vector<int> PassedDescriptors() {
  std::vector<int> fds;
  const int count = NumberIn("LISTEN_FDS");
  if (NumberIn("LISTEN_PID") != getpid() || count < 0 || count > kMaxPassed) return fds;
  for (int fd = kFirstPassed; fd < kFirstPassed + count; ++fd)
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) == 0) fds.push_back(fd);
  // Their names, which others have, go by the place.
  return fds.size() == static_cast<size_t>(count) ? fds : std::vector<int>();
}

}  // namespace kapsule::daemon
