// kapsule-snapshotter's options.
#pragma once

#include "snapshotter/config.h"

namespace kapsule::snapshotter {

// What the command line says, and of the rest what the file of --config does; checked.
// Exits after --help, --version and wrong usage.
absl::StatusOr<Config> ParseCommandLine(int argc, char** argv);

}  // namespace kapsule::snapshotter
