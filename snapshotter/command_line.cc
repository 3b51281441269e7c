#include "snapshotter/command_line.h"

#include <cstdlib>

#include <CLI/CLI.hpp>

namespace kapsule::snapshotter {
namespace {

constexpr char kExamples[] = R"(Examples:
  kapsule-snapshotter --config /etc/kapsule/snapshotter.toml
  kapsule-snapshotter --root /var/lib/kapsule --address /run/kapsule/snapshotter.sock

containerd's config.toml then has:
  [proxy_plugins.kapsule]
    type = "snapshot"
    address = "/run/kapsule/snapshotter.sock"

and from containerd 1.7.4 on, not before, for clients that send no labels:
  [proxy_plugins.kapsule-diff]
    type = "diff"
    address = "/run/kapsule/snapshotter.sock"
  [plugins."io.containerd.service.v1.diff-service"]
    default = ["kapsule-diff", "walking"]

Several instances run side by side, each with its own --root and --address.)";

// Options write into `config`; those that are not given leave it alone.
class CommandLine {
 public:
  CommandLine() {
    app_.add_option("--config", file_, "Read this TOML file; options below override it")
        ->type_name("FILE");
    Path("--root", config_.root, "Where snapshots and their metadata are kept");
    Path("--address", config_.address, "The unix socket to serve containerd on");
    Path("--containerd-address", config_.containerd_address, "containerd's own unix socket");
    Path("--content-root", config_.content_root, "containerd's content store");
    Path("--keyprovider", config_.keyprovider_socket, "The keyprovider's unix socket");
    Path("--fuse-program", config_.fuse_program, "kapsule-fuse, if not beside this program");
    app_.add_option("--fuse-user", config_.fuse_user, "The user that kapsule-fuse runs as")
        ->type_name("NAME|UID");
    Path("--fetch-program", config_.fetch_program, "kapsule-fetch, if not beside this program");
    app_.add_option("--fetch-user", config_.fetch_user, "The user that kapsule-fetch runs as")
        ->type_name("NAME|UID");
    Path("--fetch-cache", config_.fetch_cache, "Where it keeps what it read from registries");
    app_.add_option("--view-mount", config_.view_mount, "How views are mounted: auto, file or loop")
        ->type_name("WAY");
    app_.add_option("--metrics-address", config_.metrics_address,
                    "Serve /metrics and /healthz there: 127.0.0.1:PORT, or a unix socket's path")
        ->type_name("ADDRESS");
    app_.add_option("--name", config_.snapshotter_name, "The name in containerd's proxy_plugins")
        ->type_name("NAME");
    app_.add_option("--log-level", config_.log_level, "trace, debug, info, warning or error")
        ->type_name("LEVEL");
    app_.set_version_flag("--version", "kapsule-snapshotter " KAPSULE_VERSION);
    app_.footer(kExamples);
  }

  absl::StatusOr<Config> Parse(int argc, char** argv) {
    ParseOnce(argc, argv);
    if (!file_.empty()) {
      ASSIGN_OR_RETURN(config_, LoadConfig(file_));
      ParseOnce(argc, argv);
    }
    RETURN_IF_ERROR(CheckConfig(config_));
    return config_;
  }

 private:
  void Path(const char* name, std::filesystem::path& path, const char* what) {
    app_.add_option_function<std::string>(
            name, [&path](const std::string& text) { path = text; }, what)
        ->type_name("PATH");
  }
  void ParseOnce(int argc, char** argv) {
    try {
      app_.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      exit(app_.exit(error) == 0 ? 0 : 2);
    }
  }

  CLI::App app_{
      "Serves containerd snapshots: ordinary layers as overlayfs, and the layers of"
      " encrypted models mounted and decrypted on demand."};
  Config config_;
  std::string file_;
};

}  // namespace

absl::StatusOr<Config> ParseCommandLine(int argc, char** argv) {
  CommandLine command_line;
  return command_line.Parse(argc, argv);
}

}  // namespace kapsule::snapshotter
