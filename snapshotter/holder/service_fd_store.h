// The service manager's descriptor store (sd_notify(3), FDSTORE=1): what it has
// comes back when the service is started again after everything of it has ended.
#pragma once

#include <sys/un.h>

#include "core/control/holder_store.h"

namespace kapsule::holder {

// A descriptor's name there is "NAME.ic": descriptor i of the c that have the
// name, since the service manager keeps no order.
std::string StoredName(std::string_view name, size_t index, size_t count);

// Not thread-safe.
class ServiceFdStore final : public control::HeldMirror {
 public:
  // systemd passes all names in one variable of the environment, and a string
  // longer than 128 KiB makes exec fail: the service would never start again.
  static constexpr size_t kMaxNameBytes = 120 * 1024;

  // `address` is the value of NOTIFY_SOCKET.
  //   InvalidArgument  neither a path nor an abstract socket, or too long
  static absl::StatusOr<std::unique_ptr<ServiceFdStore>> Make(std::string_view address);

  // Until this is called, what is added is what came from the service manager.
  void StartSending() { sending_ = true; }

  bool Added(std::string_view name, std::span<const UniqueFd> fds) override;
  void Removed(std::string_view name, size_t fds) override;

 private:
  ServiceFdStore(UniqueFd socket, sockaddr_un address, socklen_t length)
      : socket_(std::move(socket)), address_(address), address_length_(length) {}
  bool Send(std::string_view text, int fd);
  bool Failed(const char* what);

  const UniqueFd socket_;
  const sockaddr_un address_;
  const socklen_t address_length_;
  size_t name_bytes_ = 0;
  bool sending_ = false;
  bool failing_ = false;  // and the log knows
};

// Puts the descriptors `first`, `first` + 1, … into the store under their names
// (LISTEN_FDNAMES: separated by colons). Takes them in any case: those with
// other names, and those whose name is not complete, are closed. Returns how
// many were put.
size_t Restore(control::HolderStore& store, int first, std::string_view names);

}  // namespace kapsule::holder
