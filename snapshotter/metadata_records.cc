#include "snapshotter/metadata_records.h"

#include <utility>

namespace kapsule::snapshotter {
namespace {

constexpr char kSelectRecord[] =
    "SELECT s.id, s.key, p.key, s.kind, s.created_ns, s.updated_ns, s.size, s.inodes,"
    " s.chain_id, s.depth, s.layer, s.ns"
    " FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent_id";
constexpr char kSelectOne[] =
    "SELECT s.id, s.key, p.key, s.kind, s.created_ns, s.updated_ns, s.size, s.inodes,"
    " s.chain_id, s.depth, s.layer, s.ns"
    " FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent_id WHERE s.key = ?";
constexpr char kSelectChain[] =
    "WITH RECURSIVE chain(id, parent_id, n) AS ("
    " SELECT id, parent_id, 0 FROM snapshots WHERE key = ?"
    " UNION ALL"
    " SELECT s.id, s.parent_id, n + 1 FROM snapshots s JOIN chain ON s.id = chain.parent_id)"
    " SELECT s.id, s.kind, s.chain_id, s.depth, s.layer, s.ns"
    " FROM chain JOIN snapshots s ON s.id = chain.id ORDER BY chain.n";

// Columns `first` to `first` + 3: chain id, depth, label, namespace.
absl::StatusOr<std::optional<ModelLayer>> ReadLayer(const Statement& row, int64_t id, int first) {
  if (row.IsNull(first)) return std::nullopt;
  ModelLayer layer;
  layer.id = id;
  absl::StatusOr<oci::Digest> chain = oci::Digest::Parse(row.Text(first));
  absl::StatusOr<oci::LayerLabel> label = oci::LayerLabel::FromJson(row.Text(first + 2));
  if (!chain.ok() || !label.ok())
    return DataLoss("snapshot {}: its record as a Kapsule layer is damaged", id);
  layer.chain_id = *chain;
  layer.label = *std::move(label);
  layer.depth = static_cast<uint32_t>(row.Int(first + 1));
  layer.ns = row.Text(first + 3);
  return layer;
}

// Of a row of kSelectRecord, without labels.
absl::StatusOr<Record> ReadRecord(const Statement& row) {
  Record record;
  record.id = row.Int(0);
  record.info.name = row.Text(1);
  record.info.parent = row.Text(2);
  record.info.kind = static_cast<Kind>(row.Int(3));
  record.info.created_ns = row.Int(4);
  record.info.updated_ns = row.Int(5);
  record.usage = {static_cast<uint64_t>(row.Int(6)), static_cast<uint64_t>(row.Int(7))};
  ASSIGN_OR_RETURN(record.layer, ReadLayer(row, record.id, 8));
  return record;
}

}  // namespace

absl::StatusOr<Record> GetRecord(Database& db, const std::string& key) {
  ASSIGN_OR_RETURN(Statement row, db.Query(kSelectOne, key));
  ASSIGN_OR_RETURN(const bool found, row.Step());
  if (!found) return NotFound("snapshot {} does not exist", key);
  ASSIGN_OR_RETURN(Record record, ReadRecord(row));
  ASSIGN_OR_RETURN(Statement label,
                   db.Query("SELECT name, value FROM labels WHERE snapshot_id = ?", record.id));
  while (true) {
    ASSIGN_OR_RETURN(const bool more, label.Step());
    if (!more) return record;
    record.info.labels.emplace(label.Text(0), label.Text(1));
  }
}

absl::StatusOr<Record> GetRecord(Database& db, int64_t id) {
  ASSIGN_OR_RETURN(Statement row, db.Query("SELECT key FROM snapshots WHERE id = ?", id));
  ASSIGN_OR_RETURN(const bool found, row.Step());
  if (!found) return NotFound("snapshot number {} does not exist", id);
  return GetRecord(db, row.Text(0));
}

absl::StatusOr<Chain> GetChain(Database& db, const std::string& name) {
  Chain chain;
  if (name.empty()) return chain;
  ASSIGN_OR_RETURN(Statement row, db.Query(kSelectChain, name));
  while (true) {
    ASSIGN_OR_RETURN(const bool more, row.Step());
    if (!more) break;
    const int64_t id = row.Int(0);
    if (chain.ids.empty() && static_cast<Kind>(row.Int(1)) != Kind::kCommitted)
      return InvalidArgument("parent {} is not a committed snapshot", name);
    chain.ids.push_back(id);
    ASSIGN_OR_RETURN(std::optional<ModelLayer> layer, ReadLayer(row, id, 2));
    if (layer) chain.layers.insert(chain.layers.begin(), *std::move(layer));
  }
  if (chain.ids.empty()) return NotFound("parent snapshot {} does not exist", name);
  return chain;
}

absl::StatusOr<std::vector<Info>> ListInfos(Database& db) {
  std::map<int64_t, Labels> labels;
  ASSIGN_OR_RETURN(Statement label, db.Query("SELECT snapshot_id, name, value FROM labels"));
  while (true) {
    ASSIGN_OR_RETURN(const bool more, label.Step());
    if (!more) break;
    labels[label.Int(0)].emplace(label.Text(1), label.Text(2));
  }
  std::vector<Info> all;
  ASSIGN_OR_RETURN(Statement row, db.Query(kSelectRecord));
  while (true) {
    ASSIGN_OR_RETURN(const bool more, row.Step());
    if (!more) return all;
    ASSIGN_OR_RETURN(Record record, ReadRecord(row));
    record.info.labels = std::move(labels[record.id]);
    all.push_back(std::move(record.info));
  }
}

absl::StatusOr<std::vector<ModelLayer>> ListLayers(Database& db) {
  std::vector<ModelLayer> layers;
  ASSIGN_OR_RETURN(Statement row, db.Query("SELECT id, chain_id, depth, layer, ns FROM snapshots"
                                           " WHERE layer IS NOT NULL AND kind = ? ORDER BY id",
                                           static_cast<int64_t>(Kind::kCommitted)));
  while (true) {
    ASSIGN_OR_RETURN(const bool more, row.Step());
    if (!more) return layers;
    ASSIGN_OR_RETURN(std::optional<ModelLayer> layer, ReadLayer(row, row.Int(0), 1));
    layers.push_back(*std::move(layer));
  }
}

absl::StatusOr<std::set<int64_t>> ListIds(Database& db) {
  std::set<int64_t> ids;
  ASSIGN_OR_RETURN(Statement row, db.Query("SELECT id FROM snapshots"));
  while (true) {
    ASSIGN_OR_RETURN(const bool more, row.Step());
    if (!more) return ids;
    ids.insert(row.Int(0));
  }
}

absl::StatusOr<std::map<Kind, size_t>> CountByKind(Database& db) {
  std::map<Kind, size_t> counts;
  ASSIGN_OR_RETURN(Statement row, db.Query("SELECT kind, count(*) FROM snapshots GROUP BY kind"));
  while (true) {
    ASSIGN_OR_RETURN(const bool more, row.Step());
    if (!more) return counts;
    counts[static_cast<Kind>(row.Int(0))] = static_cast<size_t>(row.Int(1));
  }
}

}  // namespace kapsule::snapshotter
