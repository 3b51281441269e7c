#include "snapshotter/fuse_life.h"

#include <absl/time/clock.h>

namespace kapsule::snapshotter {
namespace {

constexpr absl::Duration kServeTimeout = absl::Seconds(10);
// Between the timeout that kapsule-fuse has and the one that its answer has.
constexpr absl::Duration kAnswerTime = absl::Seconds(5);

std::vector<std::string> ArgumentsOf(const DataPlane::Options& options) {
  constexpr int kControl = DaemonProcess::kFirstFd, kHolder = kControl + 1;
  std::vector<std::string> arguments = {"--control-fd",  std::to_string(kControl),
                                        "--holder-fd",   std::to_string(kHolder),
                                        "--uid",         std::to_string(options.uid),
                                        "--gid",         std::to_string(options.gid),
                                        "--keyprovider", options.keyprovider_socket.string(),
                                        "--log-level",   options.log_level};
  arguments.insert(arguments.end(), options.flags.begin(), options.flags.end());
  return arguments;
}

}  // namespace

absl::StatusOr<std::unique_ptr<FuseLife>> FuseLife::Start(const DataPlane::Options& options,
                                                          const FuseConnection& connection,
                                                          std::function<void()> on_end) {
  ASSIGN_OR_RETURN(const UniqueFd holder, connection.ConnectToHolder());
  ASSIGN_OR_RETURN(control::SocketPair pair, control::MakeSocketPair());
  ASSIGN_OR_RETURN(std::unique_ptr<DaemonProcess> process,
                   DaemonProcess::Start(options.program, ArgumentsOf(options),
                                        {pair.theirs.get(), holder.get()}));
  return std::unique_ptr<FuseLife>(
      new FuseLife(std::move(process), std::move(pair.ours), std::move(on_end), false));
}

absl::StatusOr<std::unique_ptr<FuseLife>> FuseLife::Adopt(FuseConnection::Server server,
                                                          std::function<void()> on_end) {
  const pid_t pid = server.process->pid();
  if (server.process->WaitForEnd(0)) return FailedPrecondition("kapsule-fuse {} has ended", pid);
  if (!server.control.valid())
    return FailedPrecondition("the control socket of kapsule-fuse {} is lost", pid);
  return std::unique_ptr<FuseLife>(
      new FuseLife(std::move(server.process), std::move(server.control), std::move(on_end), true));
}

absl::Status FuseLife::Prepare(absl::Duration timeout) const {
  v1::DataPlaneRequest request;
  request.mutable_prepare()->set_timeout_ms(
      static_cast<uint32_t>(absl::ToInt64Milliseconds(timeout)));
  ASSIGN_OR_RETURN(const v1::DataPlaneReply reply,
                   channel_->Call(std::move(request), {}, absl::Now() + timeout + kAnswerTime));
  if (reply.views_without_key() > 0)
    return FailedPrecondition("it has no key for {} of {} views: its log says why",
                              reply.views_without_key(), reply.views());
  return absl::OkStatus();
}

absl::Status FuseLife::Serve(const FuseConnection& connection) const {
  RETURN_IF_ERROR(connection.Remember(*process_, channel_->socket()));
  v1::DataPlaneRequest request;
  request.mutable_serve();
  const absl::Status status =
      channel_->Call(std::move(request), {}, absl::Now() + kServeTimeout).status();
  if (may_serve_ && absl::IsAlreadyExists(status)) return absl::OkStatus();
  return Annotate(status, fmt::format("kapsule-fuse {} (its log says more)", pid()));
}

std::string FuseLife::End() {
  std::string how = process_->End();
  channel_->Close();
  return how;
}

void FuseLife::Leave() {
  process_->Leave();
  channel_->Leave();
}

bool FuseLife::IsCurrent(const DataPlane::Options& options) const {
  return process_->Runs(options.program, ArgumentsOf(options));
}

}  // namespace kapsule::snapshotter
