// The SQLite file of the metadata: its tables, and what makes it fit to be used.
#pragma once

#include <filesystem>
#include <memory>

#include "snapshotter/sqlite.h"

namespace kapsule::snapshotter {

// A connection that writes; makes the file where it is missing.
//   FailedPrecondition  another version of the program wrote it
//   DataLoss            it is damaged
absl::StatusOr<std::unique_ptr<Database>> OpenMetadata(const std::filesystem::path& path);

// A further connection to that file, that reads alone.
absl::StatusOr<std::unique_ptr<Database>> OpenMetadataReader(const std::filesystem::path& path);

}  // namespace kapsule::snapshotter
