#include "kapsule-ctl/doctor.h"

#include <unistd.h>

#include <algorithm>
#include <memory>

#include "core/base/log.h"
#include "core/base/printable.h"
#include "kapsule-ctl/command.h"
#include "kapsule-ctl/containerd_config.h"

namespace kapsule::ctl {
namespace {

const char* WordOf(Grade grade) {
  switch (grade) {
    case Grade::kOk:
      return "ok";
    case Grade::kWarning:
      return "warning";
    case Grade::kProblem:
      return "problem";
  }
  return "";
}

long Count(const std::vector<Diagnosis>& diagnoses, Grade grade) {
  return std::count_if(diagnoses.begin(), diagnoses.end(), [grade](const Diagnosis& diagnosis) {
    return diagnosis.finding.grade == grade;
  });
}

std::string Numbered(long count, const char* what) {
  return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
}

struct Options {
  std::string config, address, containerd_config;
  bool json = false;
};

absl::StatusOr<NodeSettings> SettingsOf(const Options& options) {
  NodeSettings settings;
  if (!options.config.empty() || access(kNodeConfig, F_OK) == 0) {
    ASSIGN_OR_RETURN(settings,
                     LoadNodeSettings(options.config.empty() ? kNodeConfig : options.config));
  }
  if (!options.address.empty()) settings.address = options.address;
  settings.containerd_config = options.containerd_config;
  return settings;
}

absl::Status Doctor(const Options& options) {
  RETURN_IF_ERROR(InitLog("kapsule-ctl", "error"));
  ASSIGN_OR_RETURN(const NodeSettings settings, SettingsOf(options));
  std::vector<Check> checks;
  for (const auto& list :
       {HostChecks, MountChecks, MemoryChecks, NodeChecks, FetchChecks, ContainerdChecks})
    for (Check& check : list()) checks.push_back(std::move(check));
  const std::vector<Diagnosis> diagnoses = Diagnose(checks, settings, geteuid() == 0);
  RETURN_IF_ERROR(options.json ? PrintResult(DiagnosesJson(diagnoses))
                               : PrintResult(FormatDiagnoses(diagnoses)));
  return Verdict(diagnoses);
}

}  // namespace

Finding Good(std::string seen) { return {Grade::kOk, std::move(seen), ""}; }
Finding Warn(std::string seen, std::string fix) {
  return {Grade::kWarning, std::move(seen), std::move(fix)};
}
Finding Bad(std::string seen, std::string fix) {
  return {Grade::kProblem, std::move(seen), std::move(fix)};
}

std::vector<Diagnosis> Diagnose(const std::vector<Check>& checks, const NodeSettings& settings,
                                bool root) {
  std::vector<Diagnosis> diagnoses;
  for (const Check& check : checks)
    diagnoses.push_back(
        {check.name, check.needs_root && !root
                         ? Warn("not tried without root", "run kapsule-ctl doctor as root")
                         : check.run(settings)});
  return diagnoses;
}

std::string FormatDiagnoses(const std::vector<Diagnosis>& diagnoses) {
  std::string text;
  for (const auto& [name, finding] : diagnoses) {
    text += fmt::format("{:<9}{:<18}{}\n", WordOf(finding.grade), name, Printable(finding.seen));
    if (!finding.fix.empty()) text += fmt::format("{:27}-> {}\n", "", Printable(finding.fix));
  }
  return text + fmt::format("{}, {}\n", Numbered(Count(diagnoses, Grade::kProblem), "problem"),
                            Numbered(Count(diagnoses, Grade::kWarning), "warning"));
}

Json DiagnosesJson(const std::vector<Diagnosis>& diagnoses) {
  Json checks = Json::array();
  for (const auto& [name, finding] : diagnoses)
    checks.push_back({{"name", name},
                      {"grade", WordOf(finding.grade)},
                      {"seen", finding.seen},
                      {"fix", finding.fix}});
  return {{"problems", Count(diagnoses, Grade::kProblem)},
          {"warnings", Count(diagnoses, Grade::kWarning)},
          {"checks", std::move(checks)}};
}

absl::Status Verdict(const std::vector<Diagnosis>& diagnoses) {
  const long problems = Count(diagnoses, Grade::kProblem);
  if (problems == 0) return absl::OkStatus();
  return FailedPrecondition("this node has {}", Numbered(problems, "problem"));
}

void AddDoctor(CLI::App& app, Action& action) {
  CLI::App* verb = app.add_subcommand("doctor", "Says what this node lacks and how to get it");
  auto options = std::make_shared<Options>();
  verb->add_option("--address", options->address, "The snapshotter's unix socket")
      ->type_name("PATH");
  verb->add_option("--config", options->config,
                   fmt::format("The snapshotter's TOML file [{}, where it is]", kNodeConfig))
      ->type_name("FILE");
  verb->add_option(
          "--containerd-config", options->containerd_config,
          fmt::format("containerd's TOML file [the one it runs with, else {}]", kContainerdConfig))
      ->type_name("FILE");
  verb->add_flag("--json", options->json, "Print the result as JSON");
  verb->footer(
      "Mounts a tiny view of its own, where nobody else sees it, to find out what this kernel\n"
      "can; run it as root. The exit code is 0 where there is no problem; warnings are none.\n\n"
      "Examples:\n"
      "  kapsule-ctl doctor\n"
      "  kapsule-ctl doctor --json --config /etc/kapsule/snapshotter.toml\n");
  verb->callback([options, &action] { action = [options] { return Doctor(*options); }; });
}

}  // namespace kapsule::ctl
