// Changes of the metadata inside a transaction of their caller. Errors of the file itself
// are those of Database (sqlite.h), others as in MetadataStore.
#pragma once

#include "snapshotter/metadata_records.h"

namespace kapsule::snapshotter {

// Returns the id.
absl::StatusOr<int64_t> InsertRecord(Database& db, Kind kind, const std::string& key,
                                     const Chain& parent, const Labels& labels);
// Makes `layer.id` that Kapsule layer.
absl::Status SetLayer(Database& db, const ModelLayer& layer);
// As MetadataStore.
absl::Status ClaimLayer(Database& db, const ModelLayer& layer);
absl::Status CommitRecord(Database& db, const std::string& name, const std::string& key,
                          const Labels& labels, const Usage& usage);
absl::StatusOr<Record> RemoveRecord(Database& db, const std::string& key);
absl::StatusOr<Info> UpdateLabels(Database& db, const Info& info,
                                  const std::vector<std::string>& paths);

}  // namespace kapsule::snapshotter
