// The verbs of kapsule-ctl: one function and one file each.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "core/base/json.h"
#include "core/base/status.h"

namespace kapsule::ctl {

// What the command line asks for; set by the verb that was parsed, run after.
using Action = std::function<absl::Status()>;

void AddKeys(CLI::App& app, Action& action);
void AddBuild(CLI::App& app, Action& action);
void AddPull(CLI::App& app, Action& action);
void AddInspect(CLI::App& app, Action& action);
void AddDoctor(CLI::App& app, Action& action);
void AddStatus(CLI::App& app, Action& action);
void AddUpgrade(CLI::App& app, Action& action);

// Results go to stdout, everything else to stderr.
absl::Status PrintResult(const std::string& text);
absl::Status PrintResult(const Json& json);

// Parses the command line, runs the verb, prints its error; the exit code.
int Main(int argc, char** argv);

}  // namespace kapsule::ctl
