#include "core/daemon/listener.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <system_error>

#include "core/base/log.h"

namespace kapsule::daemon {
namespace {

std::pair<uint64_t, uint64_t> IdentityOf(const std::filesystem::path& path) {
  struct stat st;
  if (lstat(path.c_str(), &st) != 0) return {0, 0};
  return {st.st_dev, st.st_ino};
}

}  // namespace

Listener::Listener(std::filesystem::path path, UniqueFd socket, UniqueFd stop, Handler handler)
    : path_(std::move(path)),
      socket_(std::move(socket)),
      stop_(std::move(stop)),
      handler_(std::move(handler)),
      file_(IdentityOf(path_)) {}

absl::StatusOr<std::unique_ptr<Listener>> Listener::Start(const std::filesystem::path& path,
                                                          int type, unsigned mode,
                                                          Handler handler) {
  UniqueFd stop(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop.valid()) return ErrnoStatus(errno, "eventfd");
  ASSIGN_OR_RETURN(UniqueFd socket, ListenUnix(path, type, mode));
  std::unique_ptr<Listener> listener(
      new Listener(path, std::move(socket), std::move(stop), std::move(handler)));
  try {
    listener->thread_ = std::thread(&Listener::Run, listener.get());
  } catch (const std::system_error&) {
    return ResourceExhausted("no thread for {}", path.string());
  }
  return listener;
}

Listener::~Listener() {
  const uint64_t one = 1;
  // Fails only where the counter overflows, which still wakes the thread.
  [[maybe_unused]] const ssize_t n = write(stop_.get(), &one, sizeof(one));
  if (thread_.joinable()) thread_.join();
  if (IdentityOf(path_) == file_) unlink(path_.c_str());
}

void Listener::Run() {
  pollfd waiting[] = {{socket_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
  while (waiting[1].revents == 0) {
    if (poll(waiting, 2, -1) < 0) {
      waiting[0].revents = waiting[1].revents = 0;  // EINTR
      continue;
    }
    if (waiting[1].revents == 0 && waiting[0].revents != 0) AcceptOne();
  }
}

void Listener::AcceptOne() {
  UniqueFd connection(accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!connection.valid()) {
    if (errno == EINTR || errno == EAGAIN || errno == ECONNABORTED) return;
    log::warn("{}: accept: {}", path_.string(), std::strerror(errno));
    // Most likely no descriptor is free; the socket stays readable until one is.
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    return;
  }
  const absl::StatusOr<PeerCredentials> peer = PeerOf(connection.get());
  if (!peer.ok()) return;
  handler_(std::move(connection), *peer);
}

}  // namespace kapsule::daemon
