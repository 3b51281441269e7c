// kapsule-ctl doctor: whether a machine has what a node needs. What can be tried is
// tried, not read from a version.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "kapsule-ctl/node_settings.h"

namespace kapsule::ctl {

enum class Grade { kOk, kWarning, kProblem };

struct Finding {
  Grade grade = Grade::kOk;
  std::string seen;
  std::string fix;  // what to do; empty where all is well
};
Finding Good(std::string seen);
Finding Warn(std::string seen, std::string fix);
Finding Bad(std::string seen, std::string fix);

struct Check {
  std::string name;
  bool needs_root = false;
  std::function<Finding(const NodeSettings&)> run;
};

// One list for each subject, in the order in which they are printed.
std::vector<Check> HostChecks();    // the kernel and its settings
std::vector<Check> MountChecks();   // mounting a view
std::vector<Check> MemoryChecks();  // where keys and models could leak to
std::vector<Check> NodeChecks();    // daemons, users, folders
std::vector<Check> FetchChecks();   // reading blobs from registries
// containerd's configuration. These of one call look for it once.
std::vector<Check> ContainerdChecks();

struct Diagnosis {
  std::string name;
  Finding finding;
};
// Runs the checks one after another; those that need root only as root.
std::vector<Diagnosis> Diagnose(const std::vector<Check>& checks, const NodeSettings& settings,
                                bool root);

std::string FormatDiagnoses(const std::vector<Diagnosis>& diagnoses);
Json DiagnosesJson(const std::vector<Diagnosis>& diagnoses);
// FailedPrecondition where there is a problem; warnings are none.
absl::Status Verdict(const std::vector<Diagnosis>& diagnoses);

}  // namespace kapsule::ctl
