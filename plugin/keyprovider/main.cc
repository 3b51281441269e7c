// kapsule-keyprovider: holds private keys and unwraps layer keys for the peers
// that are listed.
#include <signal.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "core/base/heap.h"
#include "core/base/log.h"
#include "core/daemon/hardening.h"
#include "core/daemon/listener.h"
#include "core/daemon/notify.h"
#include "core/daemon/signals.h"
#include "core/daemon/user.h"
#include "core/keyprovider/grpc_server.h"
#include "plugin/keyprovider/config.h"
#include "plugin/keyprovider/frame_server.h"

namespace kapsule::keyprovider {
namespace {

constexpr int kUsageError = 2;
// Anyone may connect; who gets an answer is decided by the peer's uid.
constexpr unsigned kSocketMode = 0666;

constexpr char kExamples[] = R"(Examples:
  # Keys for the data plane, which runs as user kapsule-fuse.
  kapsule-keyprovider --keys /etc/kapsule/keys --allow-uid kapsule-fuse

  # gRPC too (kapsule.v1.Keys, and ocicrypt's protocol for stock tools that are
  # given OCICRYPT_KEYPROVIDER_CONFIG), and a second user.
  kapsule-keyprovider --keys /etc/kapsule/keys --allow-uid kapsule-fuse \
      --allow-uid 1000 --grpc-address /run/kapsule-keys/grpc.sock

  # The same from a file; its keys are the options without "--".
  kapsule-keyprovider --config /etc/kapsule/keyprovider.toml

The sockets have mode 0666: every peer is judged by the uid that the kernel
reports. Nobody is allowed by default, root included. SIGHUP reads the keys
again; SIGTERM ends. Each request leaves one line on stderr.
)";

// Overwrites `value` where the command line gave the option.
template <typename T>
void Override(const CLI::App& app, const std::string& option, const T& given, T& value) {
  if (app.count(option) != 0) value = given;
}

absl::Status CheckConfig(const Config& config) {
  if (config.keys.empty()) return InvalidArgument("which keys? Use --keys DIR");
  if (config.address.empty()) return InvalidArgument("the address is empty; use --address PATH");
  return absl::OkStatus();
}

absl::StatusOr<std::set<uid_t>> UidsOf(const std::vector<std::string>& users) {
  std::set<uid_t> uids;
  for (const std::string& name : users) {
    const absl::StatusOr<daemon::User> user = daemon::LookUpUser(name);
    if (!user.ok()) return Annotate(user.status(), "--allow-uid");
    uids.insert(user->uid);
  }
  return uids;
}

void Reload(KeyStore& store) {
  daemon::NotifyReloading();
  const absl::Status reloaded = store.Reload();
  if (!reloaded.ok()) log::error("the keys stay as they were: {}", Describe(reloaded));
  daemon::NotifyReady();
}

absl::Status Run(const Config& config) {
  // Before any thread, which all inherit the mask.
  ASSIGN_OR_RETURN(daemon::SignalWaiter signals,
                   daemon::SignalWaiter::Block({SIGTERM, SIGINT, SIGHUP}));
  signal(SIGPIPE, SIG_IGN);
  if (const absl::Status locked = daemon::LockMemory(); !locked.ok())
    log::warn("{}", Message(locked));
  KeyStore store(config.keys);
  RETURN_IF_ERROR(store.Reload());
  ASSIGN_OR_RETURN(std::set<uid_t> uids, UidsOf(config.allow_uid));
  if (uids.empty()) log::warn("nobody is allowed to ask; list users by --allow-uid");
  const Provider provider(store, std::move(uids));

  // Listeners go before the servers that they feed.
  FrameServer frames(provider);
  std::unique_ptr<GrpcServer> grpc;
  std::unique_ptr<daemon::Listener> grpc_listener;
  if (!config.grpc_address.empty()) {
    ASSIGN_OR_RETURN(grpc, GrpcServer::Start(
                               [&](const auto& annotations, const auto& peer) {
                                 return provider.Unwrap(annotations, peer);
                               },
                               [&](std::string_view packet, const auto& peer) {
                                 return provider.UnwrapPacket(packet, peer);
                               }));
    const auto adopt = [&](UniqueFd connection, const PeerCredentials& peer) {
      const absl::Status adopted = grpc->Adopt(std::move(connection), peer);
      if (!adopted.ok()) log::warn("uid={} pid={}: {}", peer.uid, peer.pid, Describe(adopted));
    };
    ASSIGN_OR_RETURN(grpc_listener,
                     daemon::Listener::Start(config.grpc_address, SOCK_STREAM, kSocketMode, adopt));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<daemon::Listener> listener,
                   daemon::Listener::Start(config.address, SOCK_SEQPACKET, kSocketMode,
                                           [&](UniqueFd connection, const PeerCredentials& peer) {
                                             frames.Serve(std::move(connection), peer);
                                           }));
  log::info("listening on {}", config.address.string());
  daemon::NotifyReady();
  while (true) {
    ASSIGN_OR_RETURN(const int signal, signals.Wait());
    if (signal != SIGHUP) break;
    Reload(store);
  }
  daemon::NotifyStopping();
  log::info("stopping");
  return absl::OkStatus();
}

int Fail(const absl::Status& status, int code) {
  std::fprintf(stderr, "kapsule-keyprovider: %s\n", Message(status).c_str());
  return code;
}

int Main(int argc, char** argv) {
  KeepHeapSmall();
  if (const absl::Status forbidden = daemon::ForbidDumps(); !forbidden.ok())
    return Fail(forbidden, 1);
  CLI::App app("Unwraps the layer keys of encrypted images for local programs.",
               "kapsule-keyprovider");
  std::string config_path;
  Config given;
  app.set_version_flag("--version", "kapsule-keyprovider " KAPSULE_VERSION);
  app.add_option("--config", config_path, "TOML file; the command line overrides it");
  app.add_option("--keys", given.keys, "folder of private keys (PEM or DER; RSA, EC)");
  app.add_option("--address", given.address, "socket of kapsule-fuse's frames")
      ->default_str(given.address.string());
  app.add_option("--grpc-address", given.grpc_address,
                 "socket of the gRPC service (default: none)");
  app.add_option("--allow-uid", given.allow_uid,
                 "user, by name or number, that may ask; repeatable")
      ->allow_extra_args(false);
  app.add_option("--log-level", given.log_level, "trace, debug, info, warning or error")
      ->default_str(given.log_level);
  app.footer(kExamples);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kUsageError;
  }
  Config config;
  if (!config_path.empty()) {
    absl::StatusOr<Config> loaded = LoadConfig(config_path);
    if (!loaded.ok()) return Fail(loaded.status(), kUsageError);
    config = *std::move(loaded);
  }
  Override(app, "--keys", given.keys, config.keys);
  Override(app, "--address", given.address, config.address);
  Override(app, "--grpc-address", given.grpc_address, config.grpc_address);
  Override(app, "--allow-uid", given.allow_uid, config.allow_uid);
  Override(app, "--log-level", given.log_level, config.log_level);
  if (const absl::Status checked = CheckConfig(config); !checked.ok())
    return Fail(checked, kUsageError);
  if (const absl::Status log = InitLog("kapsule-keyprovider", config.log_level); !log.ok())
    return Fail(log, kUsageError);
  if (const absl::Status run = Run(config); !run.ok()) {
    log::error("{}", Describe(run));
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace kapsule::keyprovider

int main(int argc, char** argv) { return kapsule::keyprovider::Main(argc, argv); }
