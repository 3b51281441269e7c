// The records of all snapshots, in a SQLite file. What a caller was told is on
// disk: containerd syncs its own record of a snapshot right after ours.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include "snapshotter/model_layers.h"
#include "snapshotter/snapshot.h"
#include "snapshotter/sqlite.h"

namespace kapsule::snapshotter {

struct Record {
  int64_t id = 0;  // never used twice
  Info info;
  Usage usage;                      // of a committed snapshot
  std::optional<ModelLayer> layer;  // where it is a Kapsule layer
};

// A committed snapshot and those below it.
struct Chain {
  std::vector<int64_t> ids;        // top to bottom
  std::vector<ModelLayer> layers;  // those that are Kapsule layers, bottom to top

  bool IsLayerOnTop() const { return !layers.empty() && layers.back().id == ids.front(); }
};

// Thread-safe. One writer at a time; readers do not wait for it. Errors of the
// file itself are those of Database (sqlite.h).
class MetadataStore {
 public:
  // Called inside the transaction that makes record `id`; its error rolls back.
  using Place = std::function<absl::Status(int64_t id)>;

  // Makes the file where it is missing.
  //   FailedPrecondition  another version of the program wrote it
  //   DataLoss            it is damaged
  static absl::StatusOr<std::unique_ptr<MetadataStore>> Open(const std::filesystem::path& path);

  // A new active snapshot or view on `parent`; returns its id.
  //   AlreadyExists  the key is in use
  //   NotFound       the parent has been removed
  absl::StatusOr<int64_t> Create(Kind kind, const std::string& key, const Chain& parent,
                                 const Labels& labels, const Place& place);

  // A new committed snapshot that is a Kapsule layer. Errors as Create().
  absl::StatusOr<ModelLayer> CreateLayer(const std::string& name, const std::string& ns,
                                         const Chain& parent, const Labels& labels,
                                         const oci::Digest& chain_id, const oci::LayerLabel& label,
                                         const Place& place);

  // Turns the active snapshot `key` into the committed snapshot `name`.
  //   NotFound, FailedPrecondition  there is no such key, or it is not active
  //   AlreadyExists                 the name is in use
  absl::Status Commit(const std::string& name, const std::string& key, const Labels& labels,
                      const Usage& usage);

  // Returns what the record was.
  //   FailedPrecondition  it has children
  absl::StatusOr<Record> Remove(const std::string& key);

  // Sets what `paths` name: "labels" or "labels.<key>"; nothing means "labels".
  // A label that is set to nothing is deleted.
  //   InvalidArgument  another path
  absl::StatusOr<Info> Update(const Info& info, const std::vector<std::string>& paths);

  absl::StatusOr<Record> Get(const std::string& key);

  // The chain of the committed snapshot `name`; empty for an empty name.
  //   InvalidArgument  it is not committed
  absl::StatusOr<Chain> GetChain(const std::string& name);

  absl::StatusOr<std::vector<Info>> List();
  absl::StatusOr<std::vector<ModelLayer>> ListLayers();
  absl::StatusOr<std::set<int64_t>> ListIds();

 private:
  MetadataStore(std::unique_ptr<Database> writer, std::unique_ptr<Database> reader);

  absl::StatusOr<int64_t> Insert(Kind kind, const std::string& key, const Chain& parent,
                                 const Labels& labels) ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mu_);

  const std::unique_ptr<Database> writer_owner_, reader_owner_;

  // Held over a transaction: SQLite's own writes and one rename.
  absl::Mutex write_mu_;
  Database& writer_ ABSL_GUARDED_BY(write_mu_);
  absl::Mutex read_mu_;
  Database& reader_ ABSL_GUARDED_BY(read_mu_);
};

}  // namespace kapsule::snapshotter
