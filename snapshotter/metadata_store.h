// The records of all snapshots, in a SQLite file. What a caller was told is on
// disk: containerd syncs its own record of a snapshot right after ours.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/functional/function_ref.h>
#include <absl/synchronization/mutex.h>

#include "snapshotter/metadata_records.h"

namespace kapsule::snapshotter {

// Thread-safe. Changes that come while others are written go to the disk together;
// readers do not wait for them. Errors of the file itself are those of Database
// (sqlite.h).
class MetadataStore {
 public:
  // Gives record `id` its directory: called inside the transaction that makes it, on the
  // thread of whoever writes. An error takes the record back.
  using Place = absl::FunctionRef<absl::Status(int64_t id)>;

  // Makes the file where it is missing.
  //   FailedPrecondition  another version of the program wrote it
  //   DataLoss            it is damaged
  static absl::StatusOr<std::unique_ptr<MetadataStore>> Open(const std::filesystem::path& path);

  // A new active snapshot or view on `parent`; returns its id.
  //   AlreadyExists  the key is in use
  //   NotFound       the parent has been removed
  absl::StatusOr<int64_t> Create(Kind kind, const std::string& key, const Chain& parent,
                                 const Labels& labels, Place place);

  // A new committed snapshot that is a Kapsule layer. Errors as Create().
  absl::StatusOr<ModelLayer> CreateLayer(const std::string& name, const std::string& ns,
                                         const Chain& parent, const Labels& labels,
                                         const oci::Digest& chain_id, const oci::LayerLabel& label,
                                         Place place);

  // Has the active snapshot `layer.id` become that Kapsule layer when it is
  // committed. Errors as Commit().
  absl::Status ClaimLayer(const ModelLayer& layer);

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
  absl::StatusOr<Record> GetById(int64_t id);

  // The chain of the committed snapshot `name`; empty for an empty name.
  //   InvalidArgument  it is not committed
  absl::StatusOr<Chain> GetChain(const std::string& name);

  absl::StatusOr<std::vector<Info>> List();
  absl::StatusOr<std::vector<ModelLayer>> ListLayers();
  absl::StatusOr<std::set<int64_t>> ListIds();
  absl::StatusOr<std::map<Kind, size_t>> CountByKind();

  // Writes to the disk what is there already.
  absl::Status TryWrite();

 private:
  using Change = absl::FunctionRef<absl::Status(Database&)>;
  // A change, while its caller waits.
  struct Waiting {
    Change change;
    absl::Status result = absl::OkStatus();
    bool done = false;
  };

  MetadataStore(std::unique_ptr<Database> writer, std::unique_ptr<Database> reader);

  // Of those who wait, one writes for all.
  absl::Status Write(Change change) ABSL_LOCKS_EXCLUDED(queue_mu_, write_mu_);
  absl::Status WriteTogether(const std::vector<Waiting*>& all) ABSL_LOCKS_EXCLUDED(write_mu_);
  absl::Status WriteOne(Waiting& one) ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mu_);

  template <typename Query>
  std::invoke_result_t<Query, Database&> Read(Query query) ABSL_LOCKS_EXCLUDED(read_mu_);
  template <typename Query>
  std::invoke_result_t<Query, Database&> ReadTogether(Query query) ABSL_LOCKS_EXCLUDED(read_mu_);

  const std::unique_ptr<Database> writer_owner_, reader_owner_;

  absl::Mutex queue_mu_;  // never held over I/O
  std::vector<Waiting*> queue_ ABSL_GUARDED_BY(queue_mu_);
  bool writing_ ABSL_GUARDED_BY(queue_mu_) = false;
  absl::CondVar written_;

  // Held over a transaction by the one who writes: SQLite's own writes, and renames.
  // Nobody waits for it.
  absl::Mutex write_mu_;
  Database& writer_ ABSL_GUARDED_BY(write_mu_);
  absl::Mutex read_mu_;
  Database& reader_ ABSL_GUARDED_BY(read_mu_);
};

}  // namespace kapsule::snapshotter
