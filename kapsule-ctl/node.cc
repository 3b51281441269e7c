// The verbs that ask kapsule-snapshotter: status and upgrade.
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <filesystem>
#include <memory>

#include "core/base/printable.h"
#include "core/base/unix_socket.h"
#include "kapsule-ctl/command.h"
#include "kapsule/v1/node.grpc.pb.h"

namespace kapsule::ctl {
namespace {

constexpr char kDefaultAddress[] = "/run/kapsule/snapshotter.sock";
constexpr auto kStatusTimeout = std::chrono::seconds(20);
// An upgrade waits for the keys of all layers, as long as the node's
// configuration says.
constexpr auto kUpgradeTimeout = std::chrono::minutes(15);

struct Options {
  std::string address = kDefaultAddress;
  bool json = false;
};

// gRPC would try again and again, and tells less.
absl::Status CheckDaemon(const std::string& address) {
  const absl::Status status = ConnectUnix(address, SOCK_STREAM).status();
  if (absl::IsNotFound(status))
    return NotFound("no socket {}: is kapsule-snapshotter running, with this --address?", address);
  if (absl::IsPermissionDenied(status))
    return PermissionDenied("{} is root's alone: run this as root", address);
  if (absl::IsUnavailable(status))
    return Unavailable("nobody listens on {}: kapsule-snapshotter has ended", address);
  return status;
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  if (status.error_code() == grpc::StatusCode::UNIMPLEMENTED)
    return Unimplemented(
        "this kapsule-snapshotter does not know the request: it is older than"
        " kapsule-ctl {}",
        KAPSULE_VERSION);
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      Printable(status.error_message()));
}

class NodeClient {
 public:
  static absl::StatusOr<NodeClient> Connect(const std::string& address) {
    RETURN_IF_ERROR(CheckDaemon(address));
    return NodeClient(
        v1::Node::NewStub(grpc::CreateChannel("unix:" + std::filesystem::absolute(address).string(),
                                              grpc::InsecureChannelCredentials())));
  }
  absl::StatusOr<v1::StatusResponse> Status() {
    v1::StatusResponse response;
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kStatusTimeout);
    RETURN_IF_ERROR(FromGrpc(stub_->Status(&context, {}, &response)));
    return response;
  }
  absl::StatusOr<v1::UpgradeResponse> Upgrade() {
    v1::UpgradeResponse response;
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kUpgradeTimeout);
    RETURN_IF_ERROR(FromGrpc(stub_->Upgrade(&context, {}, &response)));
    return response;
  }

 private:
  explicit NodeClient(std::unique_ptr<v1::Node::Stub> stub) : stub_(std::move(stub)) {}
  std::unique_ptr<v1::Node::Stub> stub_;
};

double Milliseconds(uint64_t microseconds) { return static_cast<double>(microseconds) / 1000; }

Json StatusJson(const v1::StatusResponse& status) {
  return {{"version", status.version()},
          {"pid", status.pid()},
          {"serving", status.serving()},
          {"failover", status.failover()},
          {"failoverProblem", status.failover_problem()},
          {"layers", status.views()},
          {"viewMount", status.view_mount()},
          {"takeovers", status.takeovers()},
          {"lastStallMs", Milliseconds(status.last_stall_us())}};
}

std::string StatusText(const v1::StatusResponse& status) {
  const std::string process =
      status.pid() == 0
          ? "none"
          : fmt::format("{}{}", status.pid(), status.serving() ? "" : ", not serving");
  const std::string stall =
      status.takeovers() == 0
          ? ""
          : fmt::format(", the last in {:.1f} ms", Milliseconds(status.last_stall_us()));
  return fmt::format(
      "version       {}\nkapsule-fuse  {}\nlayers        {}, mounted by {}\nfailover      {}\n"
      "take-overs    {}{}\n",
      Printable(status.version()), process, status.views(),
      status.view_mount().empty() ? "no way yet" : Printable(status.view_mount()),
      status.failover() ? "on" : "off: " + Printable(status.failover_problem()), status.takeovers(),
      stall);
}

absl::Status ShowStatus(const Options& options) {
  ASSIGN_OR_RETURN(NodeClient node, NodeClient::Connect(options.address));
  ASSIGN_OR_RETURN(const v1::StatusResponse status, node.Status());
  return options.json ? PrintResult(StatusJson(status)) : PrintResult(StatusText(status));
}

absl::Status Upgrade(const Options& options) {
  ASSIGN_OR_RETURN(NodeClient node, NodeClient::Connect(options.address));
  const absl::StatusOr<v1::UpgradeResponse> upgraded = node.Upgrade();
  if (!upgraded.ok()) return Annotate(upgraded.status(), "no upgrade");
  if (options.json)
    return PrintResult(Json{{"oldPid", upgraded->old_pid()},
                            {"newPid", upgraded->new_pid()},
                            {"stallMs", Milliseconds(upgraded->stall_us())}});
  return PrintResult(
      fmt::format("kapsule-fuse {} took over from {}; readers waited for {:.1f} ms\n",
                  upgraded->new_pid(), upgraded->old_pid(), Milliseconds(upgraded->stall_us())));
}

using Verb = absl::Status (*)(const Options&);

void Add(CLI::App& app, Action& action, const char* name, const char* what, const char* footer,
         Verb run) {
  CLI::App* verb = app.add_subcommand(name, what);
  auto options = std::make_shared<Options>();
  verb->add_option("--address", options->address, "kapsule-snapshotter's socket")
      ->type_name("SOCKET")
      ->capture_default_str();
  verb->add_flag("--json", options->json, "Print the result as JSON");
  verb->footer(footer);
  verb->callback([options, run, &action] { action = [options, run] { return run(*options); }; });
}

}  // namespace

void AddStatus(CLI::App& app, Action& action) {
  Add(app, action, "status", "Shows how this node's data plane is",
      "Failover is off where a kapsule-fuse that ends could not be succeeded.\n\n"
      "Examples:\n"
      "  kapsule-ctl status\n"
      "  kapsule-ctl status --json | jq .failover\n",
      ShowStatus);
}

void AddUpgrade(CLI::App& app, Action& action) {
  Add(app, action, "upgrade", "Starts the installed kapsule-fuse in the place of the running one",
      "Containers read on: the new process first gets ready, with the keys of all layers, and\n"
      "takes over then. Where it does not, the old one serves on, and this says why.\n"
      "kapsule-snapshotter itself is upgraded by restarting its service; models stay mounted.\n\n"
      "Examples:\n"
      "  kapsule-ctl upgrade\n"
      "  kapsule-ctl upgrade --address /run/kapsule/snapshotter.sock --json\n",
      Upgrade);
}

}  // namespace kapsule::ctl
