#include "kapsule-ctl/running_containerd.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>

#include "containerd/services/version/v1/version.grpc.pb.h"
#include "core/base/unix_socket.h"

namespace kapsule::ctl {
namespace {

namespace fs = std::filesystem;
namespace api = containerd::services::version::v1;

constexpr auto kPatience = std::chrono::seconds(5);
constexpr size_t kMaxCommandLine = 1 << 16;

}  // namespace

absl::StatusOr<std::string> VersionOfRunning(const std::string& address) {
  const auto stub = api::Version::NewStub(
      grpc::CreateChannel("unix://" + address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kPatience);
  api::VersionResponse response;
  const grpc::Status status = stub->Version(&context, {}, &response);
  if (!status.ok()) return Unavailable("{}: {}", address, status.error_message());
  return response.version();
}

std::optional<fs::path> ConfigOfRunning(const std::string& address) {
  const absl::StatusOr<UniqueFd> socket = ConnectUnix(address, SOCK_STREAM);
  if (!socket.ok()) return std::nullopt;
  const absl::StatusOr<PeerCredentials> peer = PeerOf(socket->get());
  if (!peer.ok()) return std::nullopt;
  // /proc says that its files are empty, so ReadFile() would read nothing.
  const UniqueFd file(
      open(fmt::format("/proc/{}/cmdline", peer->pid).c_str(), O_RDONLY | O_CLOEXEC));
  std::string line(kMaxCommandLine, '\0');
  const ssize_t size = file.valid() ? read(file.get(), line.data(), line.size()) : 0;
  line.resize(static_cast<size_t>(std::max<ssize_t>(size, 0)));
  std::optional<fs::path> path;
  std::string before;
  for (size_t begin = 0; begin < line.size();) {
    const std::string word = line.c_str() + begin;
    begin += word.size() + 1;
    for (const char* const flag : {"--config=", "-config=", "-c="})
      if (word.starts_with(flag)) path = word.substr(std::string_view(flag).size());
    if (before == "--config" || before == "-config" || before == "-c") path = word;
    before = word;
  }
  std::error_code error;
  if (path && path->is_relative())
    path = fs::read_symlink(fmt::format("/proc/{}/cwd", peer->pid), error) / *path;
  return path;
}

}  // namespace kapsule::ctl
