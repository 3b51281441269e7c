// What the metadata says of snapshots, read from a connection. Errors of the file itself
// are those of Database (sqlite.h).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "snapshotter/model_layers.h"
#include "snapshotter/snapshot.h"
#include "snapshotter/sqlite.h"

namespace kapsule::snapshotter {

struct Record {
  int64_t id = 0;  // never used twice
  Info info;
  Usage usage;                      // of a committed snapshot
  std::optional<ModelLayer> layer;  // where it is a Kapsule layer, or will be when committed
};

// A committed snapshot and those below it.
struct Chain {
  std::vector<int64_t> ids;        // top to bottom
  std::vector<ModelLayer> layers;  // those that are Kapsule layers, bottom to top

  bool IsLayerOnTop() const { return !layers.empty() && layers.back().id == ids.front(); }
};

// Each is one look at the file.
//   NotFound  there is no such snapshot
absl::StatusOr<Record> GetRecord(Database& db, const std::string& key);
absl::StatusOr<Record> GetRecord(Database& db, int64_t id);

// As MetadataStore.
absl::StatusOr<Chain> GetChain(Database& db, const std::string& name);
absl::StatusOr<std::vector<Info>> ListInfos(Database& db);
absl::StatusOr<std::vector<ModelLayer>> ListLayers(Database& db);
absl::StatusOr<std::set<int64_t>> ListIds(Database& db);
absl::StatusOr<std::map<Kind, size_t>> CountByKind(Database& db);

}  // namespace kapsule::snapshotter
