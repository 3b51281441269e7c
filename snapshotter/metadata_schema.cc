#include "snapshotter/metadata_schema.h"

namespace kapsule::snapshotter {
namespace {

constexpr int64_t kSchemaVersion = 2;

// A parent is made before its children, and AUTOINCREMENT uses no id twice, so
// the CHECK makes a circle impossible.
constexpr char kSchema[] = R"(
CREATE TABLE snapshots (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,
  key        TEXT NOT NULL UNIQUE,
  parent_id  INTEGER REFERENCES snapshots(id) CHECK (parent_id < id),
  kind       INTEGER NOT NULL CHECK (kind BETWEEN 1 AND 3),
  created_ns INTEGER NOT NULL,
  updated_ns INTEGER NOT NULL,
  size       INTEGER NOT NULL DEFAULT 0,
  inodes     INTEGER NOT NULL DEFAULT 0,
  chain_id   TEXT,     -- of a Kapsule layer
  depth      INTEGER,
  layer      TEXT,     -- the value of its label
  ns         TEXT,     -- whose pull made it
  CHECK ((chain_id IS NULL) = (layer IS NULL) AND (depth IS NULL) = (layer IS NULL)
         AND (ns IS NULL) = (layer IS NULL))
) STRICT;
CREATE INDEX snapshots_by_parent ON snapshots(parent_id);
CREATE TABLE labels (
  snapshot_id INTEGER NOT NULL REFERENCES snapshots(id) ON DELETE CASCADE,
  name        TEXT NOT NULL,
  value       TEXT NOT NULL,
  PRIMARY KEY (snapshot_id, name)
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 2;
)";

// WAL lets readers work beside the writer. FULL syncs it at each commit: with
// NORMAL a power failure loses snapshots that containerd has a record of.
absl::StatusOr<std::unique_ptr<Database>> Connect(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<Database> db, Database::Open(path));
  RETURN_IF_ERROR(
      db->Script("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
                 "PRAGMA foreign_keys = ON"));
  return db;
}

absl::Status CheckIntegrity(Database& db, const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(Statement check, db.Query("PRAGMA quick_check(1)"));
  ASSIGN_OR_RETURN(const bool row, check.Step());
  if (row && check.Text(0) != "ok")
    return DataLoss(
        "{}: the metadata is damaged ({}): move its folder away and pull the images"
        " again",
        path.string(), check.Text(0));
  return absl::OkStatus();
}

absl::Status MakeSchema(Database& db, const std::filesystem::path& path) {
  RETURN_IF_ERROR(CheckIntegrity(db, path));
  ASSIGN_OR_RETURN(Transaction transaction, Transaction::BeginWrite(db));
  ASSIGN_OR_RETURN(const int64_t version, db.Number("PRAGMA user_version"));
  if (version != 0 && version != kSchemaVersion)
    return FailedPrecondition(
        "{}: written by {} kapsule-snapshotter (schema {}, this one knows {}): start that one or"
        " use another root",
        path.string(), version > kSchemaVersion ? "a newer" : "an older", version, kSchemaVersion);
  if (version == 0) RETURN_IF_ERROR(db.Script(kSchema));
  return transaction.Commit();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Database>> OpenMetadata(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<Database> db, Connect(path));
  RETURN_IF_ERROR(MakeSchema(*db, path));
  return db;
}

absl::StatusOr<std::unique_ptr<Database>> OpenMetadataReader(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<Database> db, Connect(path));
  RETURN_IF_ERROR(db->Script("PRAGMA query_only = ON"));
  return db;
}

}  // namespace kapsule::snapshotter
