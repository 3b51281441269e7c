// Accepting peers on a unix socket whose file every daemon makes, judges and
// removes in the same way.
#pragma once

#include <functional>
#include <memory>
#include <thread>

#include "core/base/unix_socket.h"

namespace kapsule::daemon {

class Listener {
 public:
  // Called on the listener's own thread, which accepts nobody else meanwhile.
  using Handler = std::function<void(UniqueFd connection, const PeerCredentials& peer)>;

  // Listens at `path` (as ListenUnix, whose errors it gives) and accepts until
  // it is destroyed.
  static absl::StatusOr<std::unique_ptr<Listener>> Start(const std::filesystem::path& path,
                                                         int type, unsigned mode, Handler handler);
  // Stops accepting, waits for a running handler, removes the socket file where
  // it is still this one.
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

 private:
  Listener(std::filesystem::path path, UniqueFd socket, UniqueFd stop, Handler handler);
  void Run();
  void AcceptOne();

  const std::filesystem::path path_;
  const UniqueFd socket_;
  const UniqueFd stop_;  // eventfd
  const Handler handler_;
  std::pair<uint64_t, uint64_t> file_;  // device and inode of the socket file
  std::thread thread_;
};

}  // namespace kapsule::daemon
