#include "kapsule-ctl/command.h"

#include <csignal>
#include <cstdio>

#include "kapsule-ctl/exit_code.h"

namespace kapsule::ctl {
namespace {

constexpr char kExamples[] =
    "Examples:\n"
    "  kapsule-ctl keys generate --type rsa-4096 -o keys/\n"
    "  kapsule-ctl build -f Modelfile -t registry.example.com/acme/llama:enc \\\n"
    "      --encryption-key keys/public.pem .\n"
    "  kapsule-ctl pull --containerd registry.example.com/acme/llama:enc\n"
    "  kapsule-ctl inspect registry.example.com/acme/llama:enc\n\n";

// CLI11 gives each kind of usage error a code of its own; ours is 2.
int UsageExit(const CLI::App& app, const CLI::ParseError& error) {
  return app.exit(error) == 0 ? kExitOk : kExitUsage;
}

}  // namespace

absl::Status PrintResult(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    return ErrnoStatus(errno, "write the result to stdout");
  return absl::OkStatus();
}

absl::Status PrintResult(const Json& json) { return PrintResult(DumpJson(json) + "\n"); }

int Main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed stdout or connection is an error with a text
  CLI::App app("Makes and inspects Kapsule images: models in encrypted OCI images.", "kapsule-ctl");
  Action action;
  app.require_subcommand(1);
  app.set_version_flag("--version", "kapsule-ctl " KAPSULE_VERSION);
  app.footer(std::string(kExamples) + kExitCodesHelp);
  AddKeys(app, action);
  AddBuild(app, action);
  AddPull(app, action);
  AddInspect(app, action);
  AddDoctor(app, action);
  AddStatus(app, action);
  AddUpgrade(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return UsageExit(app, error);
  }
  const absl::Status status = action();
  if (!status.ok()) fmt::print(stderr, "kapsule-ctl: {}\n", Describe(status));
  return ExitCodeOf(status);
}

}  // namespace kapsule::ctl
