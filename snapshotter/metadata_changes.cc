#include "snapshotter/metadata_changes.h"

#include <time.h>

#include <optional>
#include <string_view>
#include <utility>

namespace kapsule::snapshotter {
namespace {

int64_t Now() {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

absl::Status AddLabels(Database& db, int64_t id, const Labels& labels) {
  for (const auto& [name, value] : labels) {
    if (value.empty()) continue;  // containerd's way to say: none
    RETURN_IF_ERROR(db.Run("INSERT INTO labels VALUES (?, ?, ?)", id, name, value));
  }
  return absl::OkStatus();
}

absl::Status PutLabels(Database& db, int64_t id, const Labels& labels) {
  RETURN_IF_ERROR(db.Run("DELETE FROM labels WHERE snapshot_id = ?", id));
  return AddLabels(db, id, labels);
}

absl::StatusOr<bool> Exists(Database& db, const char* sql, const auto& value) {
  ASSIGN_OR_RETURN(Statement row, db.Query(sql, value));
  return row.Step();
}

// As MetadataStore::Update().
absl::Status ChangeLabels(Labels& labels, const Info& wanted,
                          const std::vector<std::string>& paths) {
  constexpr std::string_view kLabel = "labels.";
  if (paths.empty()) labels = wanted.labels;
  for (const std::string& path : paths) {
    if (path == "labels") {
      labels = wanted.labels;
    } else if (path.starts_with(kLabel)) {
      const std::string name = path.substr(kLabel.size());  // verbatim, dots and all
      const auto found = wanted.labels.find(name);
      labels[name] = found == wanted.labels.end() ? "" : found->second;
    } else {
      return InvalidArgument("cannot update field {} of snapshot {}", path, wanted.name);
    }
  }
  std::erase_if(labels, [](const auto& label) { return label.second.empty(); });
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int64_t> InsertRecord(Database& db, Kind kind, const std::string& key,
                                     const Chain& parent, const Labels& labels) {
  ASSIGN_OR_RETURN(const bool taken, Exists(db, "SELECT 1 FROM snapshots WHERE key = ?", key));
  if (taken) return AlreadyExists("snapshot {} already exists", key);
  std::optional<int64_t> parent_id;
  if (!parent.ids.empty()) {
    parent_id = parent.ids.front();
    ASSIGN_OR_RETURN(const bool there,
                     Exists(db, "SELECT 1 FROM snapshots WHERE id = ?", *parent_id));
    if (!there) return NotFound("the parent of snapshot {} has been removed", key);
  }
  const int64_t now = Now();
  RETURN_IF_ERROR(
      db.Run("INSERT INTO snapshots (key, parent_id, kind, created_ns, updated_ns)"
             " VALUES (?, ?, ?, ?, ?)",
             key, parent_id, static_cast<int64_t>(kind), now, now));
  const int64_t id = db.last_id();
  RETURN_IF_ERROR(AddLabels(db, id, labels));
  return id;
}

absl::Status SetLayer(Database& db, const ModelLayer& layer) {
  ASSIGN_OR_RETURN(const std::string json, layer.label.ToJson());
  return db.Run("UPDATE snapshots SET chain_id = ?, depth = ?, layer = ?, ns = ? WHERE id = ?",
                layer.chain_id.text(), static_cast<int64_t>(layer.depth), json, layer.ns, layer.id);
}

absl::Status ClaimLayer(Database& db, const ModelLayer& layer) {
  ASSIGN_OR_RETURN(const Record record, GetRecord(db, layer.id));
  if (record.info.kind != Kind::kActive)
    return FailedPrecondition("snapshot {} is not active", record.info.name);
  return SetLayer(db, layer);
}

absl::Status CommitRecord(Database& db, const std::string& name, const std::string& key,
                          const Labels& labels, const Usage& usage) {
  ASSIGN_OR_RETURN(const bool taken, Exists(db, "SELECT 1 FROM snapshots WHERE key = ?", name));
  if (taken) return AlreadyExists("committed snapshot {} already exists", name);
  ASSIGN_OR_RETURN(const Record record, GetRecord(db, key));
  if (record.info.kind != Kind::kActive)
    return FailedPrecondition("snapshot {} is not active", key);
  const int64_t now = Now();
  RETURN_IF_ERROR(
      db.Run("UPDATE snapshots SET key = ?, kind = ?, created_ns = ?,"
             " updated_ns = ?, size = ?, inodes = ? WHERE id = ?",
             name, static_cast<int64_t>(Kind::kCommitted), now, now,
             static_cast<int64_t>(usage.size), static_cast<int64_t>(usage.inodes), record.id));
  return PutLabels(db, record.id, labels);  // nothing is inherited from the key's
}

absl::StatusOr<Record> RemoveRecord(Database& db, const std::string& key) {
  ASSIGN_OR_RETURN(Record record, GetRecord(db, key));
  ASSIGN_OR_RETURN(const bool child,
                   Exists(db, "SELECT 1 FROM snapshots WHERE parent_id = ? LIMIT 1", record.id));
  if (child) return FailedPrecondition("cannot remove snapshot with child: {}", key);
  RETURN_IF_ERROR(db.Run("DELETE FROM snapshots WHERE id = ?", record.id));
  return record;
}

absl::StatusOr<Info> UpdateLabels(Database& db, const Info& info,
                                  const std::vector<std::string>& paths) {
  ASSIGN_OR_RETURN(Record record, GetRecord(db, info.name));
  RETURN_IF_ERROR(ChangeLabels(record.info.labels, info, paths));
  record.info.updated_ns = Now();
  RETURN_IF_ERROR(db.Run("UPDATE snapshots SET updated_ns = ? WHERE id = ?", record.info.updated_ns,
                         record.id));
  RETURN_IF_ERROR(PutLabels(db, record.id, record.info.labels));
  return std::move(record.info);
}

}  // namespace kapsule::snapshotter
