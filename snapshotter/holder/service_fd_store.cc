#include "snapshotter/holder/service_fd_store.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <map>

#include "core/base/log.h"
#include "core/base/unix_socket.h"

namespace kapsule::holder {
namespace {

constexpr int kSendTimeoutMs = 200;
constexpr size_t kSuffix = 3;  // ".ic"

struct Part {
  std::string name;
  size_t index, count;
};

std::optional<Part> ParseStoredName(std::string_view stored) {
  if (stored.size() <= kSuffix) return std::nullopt;
  const std::string_view suffix = stored.substr(stored.size() - kSuffix);
  Part part{std::string(stored.substr(0, stored.size() - kSuffix)),
            static_cast<size_t>(suffix[1] - '0'), static_cast<size_t>(suffix[2] - '0')};
  if (suffix[0] != '.' || part.count > control::kMaxHeldFds || part.index >= part.count ||
      !control::IsHeldName(part.name))
    return std::nullopt;
  return part;
}

// The descriptors that have come of one name.
struct Group {
  std::array<UniqueFd, control::kMaxHeldFds> fds;
  size_t count = 0;
};

}  // namespace

std::string StoredName(std::string_view name, size_t index, size_t count) {
  return fmt::format("{}.{}{}", name, index, count);
}

absl::StatusOr<std::unique_ptr<ServiceFdStore>> ServiceFdStore::Make(std::string_view address) {
  sockaddr_un to{};
  to.sun_family = AF_UNIX;
  if (address.size() < 2 || (address[0] != '/' && address[0] != '@') ||
      address.size() >= sizeof(to.sun_path))
    return InvalidArgument("NOTIFY_SOCKET={} is not a socket's path", address);
  std::ranges::copy(address, to.sun_path);
  const bool abstract = address[0] == '@';
  if (abstract) to.sun_path[0] = '\0';
  // An abstract name ends with its last byte, a path with a NUL.
  const size_t length = offsetof(sockaddr_un, sun_path) + address.size() + (abstract ? 0 : 1);
  UniqueFd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return ErrnoStatus(errno, "socket");
  RETURN_IF_ERROR(SetTimeout(socket.get(), kSendTimeoutMs));
  return std::unique_ptr<ServiceFdStore>(
      new ServiceFdStore(std::move(socket), to, static_cast<socklen_t>(length)));
}

bool ServiceFdStore::Failed(const char* what) {
  if (!failing_)
    log::warn(
        "the service manager's descriptor store: {}: after a stop of the whole service the"
        " newest layers are mounted anew",
        what);
  failing_ = true;
  return false;
}

bool ServiceFdStore::Send(std::string_view text, int fd) {
  iovec io{const_cast<char*>(text.data()), text.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_name = const_cast<sockaddr_un*>(&address_);
  message.msg_namelen = address_length_;
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    StoreLe(CMSG_DATA(header), fd);
  }
  if (sendmsg(socket_.get(), &message, MSG_NOSIGNAL) < 0) return Failed(std::strerror(errno));
  failing_ = false;
  return true;
}

bool ServiceFdStore::Added(std::string_view name, std::span<const UniqueFd> fds) {
  const size_t bytes = fds.size() * (name.size() + kSuffix + 1);
  if (name_bytes_ + bytes > kMaxNameBytes) return Failed("it can take no more names");
  for (size_t i = 0; sending_ && i < fds.size(); ++i) {
    const std::string stored = StoredName(name, i, fds.size());
    if (Send(fmt::format("FDSTORE=1\nFDNAME={}\nFDPOLL=0", stored), fds[i].get())) continue;
    while (i-- > 0)
      Send(fmt::format("FDSTOREREMOVE=1\nFDNAME={}", StoredName(name, i, fds.size())), -1);
    return false;
  }
  name_bytes_ += bytes;
  return true;
}

void ServiceFdStore::Removed(std::string_view name, size_t fds) {
  name_bytes_ -= fds * (name.size() + kSuffix + 1);
  for (size_t i = 0; i < fds; ++i)
    Send(fmt::format("FDSTOREREMOVE=1\nFDNAME={}", StoredName(name, i, fds)), -1);
}

size_t Restore(control::HolderStore& store, int first, std::string_view names) {
  std::map<std::string, Group> groups;
  for (int fd = first; !names.empty(); ++fd) {
    const size_t end = std::min(names.find(':'), names.size());
    UniqueFd owned(fd);
    const std::optional<Part> part = ParseStoredName(names.substr(0, end));
    names.remove_prefix(std::min(end + 1, names.size()));
    if (!part || fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) continue;
    Group& group = groups[part->name];
    group.fds[part->index] = std::move(owned);
    group.count = part->count;
  }
  size_t restored = 0;
  for (auto& [name, group] : groups) {
    if (store.Put(name, std::span(group.fds).first(group.count)) == absl::StatusCode::kOk)
      restored += group.count;
    else
      log::warn("the service manager gave back only a part of {}: it is let go of", name);
  }
  return restored;
}

}  // namespace kapsule::holder
