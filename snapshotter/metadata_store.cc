#include "snapshotter/metadata_store.h"

#include <sys/stat.h>
#include <time.h>

#include <map>
#include <new>
#include <utility>

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

int64_t Now() {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

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

absl::Status SetLayer(Database& db, const ModelLayer& layer) {
  ASSIGN_OR_RETURN(const std::string json, layer.label.ToJson());
  return db.Run("UPDATE snapshots SET chain_id = ?, depth = ?, layer = ?, ns = ? WHERE id = ?",
                layer.chain_id.text(), static_cast<int64_t>(layer.depth), json, layer.ns, layer.id);
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

absl::StatusOr<int64_t> Insert(Database& db, Kind kind, const std::string& key, const Chain& parent,
                               const Labels& labels) {
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

MetadataStore::MetadataStore(std::unique_ptr<Database> writer, std::unique_ptr<Database> reader)
    : writer_owner_(std::move(writer)),
      reader_owner_(std::move(reader)),
      writer_(*writer_owner_),
      reader_(*reader_owner_) {}

absl::StatusOr<std::unique_ptr<MetadataStore>> MetadataStore::Open(
    const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<Database> writer, Connect(path));
  RETURN_IF_ERROR(MakeSchema(*writer, path));
  ASSIGN_OR_RETURN(std::unique_ptr<Database> reader, Connect(path));
  RETURN_IF_ERROR(reader->Script("PRAGMA query_only = ON"));
  return std::unique_ptr<MetadataStore>(new MetadataStore(std::move(writer), std::move(reader)));
}

absl::Status MetadataStore::Write(Change change, const Placing* placing) {
  Waiting own{change, placing};
  queue_mu_.Lock();
  try {
    queue_.push_back(&own);
  } catch (const std::bad_alloc&) {
    queue_mu_.Unlock();
    return ResourceExhausted("no memory to change the metadata");
  }
  while (writing_ && !own.done) written_.Wait(&queue_mu_);
  if (!own.done) {
    writing_ = true;
    const std::vector<Waiting*> all = std::exchange(queue_, {});
    queue_mu_.Unlock();
    absl::Status status;
    try {
      status = WriteTogether(all);
    } catch (const std::bad_alloc&) {  // others wait for us
      status = absl::ResourceExhaustedError("no memory");
    }
    queue_mu_.Lock();
    writing_ = false;
    for (Waiting* one : all) {
      // What one saw of the others is not so any more either.
      if (!status.ok()) one->result = status;
      one->done = true;
    }
    written_.SignalAll();
  }
  queue_mu_.Unlock();
  return own.result;
}

absl::Status MetadataStore::WriteTogether(const std::vector<Waiting*>& all) {
  absl::MutexLock lock(&write_mu_);
  ASSIGN_OR_RETURN(Transaction transaction, Transaction::BeginWrite(writer_));
  const Placing* placed = nullptr;
  for (Waiting* one : all) {
    RETURN_IF_ERROR(WriteOne(*one));
    if (one->result.ok() && one->placing != nullptr) placed = one->placing;
  }
  if (placed != nullptr) RETURN_IF_ERROR(placed->sync());
  return transaction.Commit();
}

// An error of the change itself is only its own; one that is returned is everybody's.
absl::Status MetadataStore::WriteOne(Waiting& one) {
  RETURN_IF_ERROR(writer_.Run("SAVEPOINT one"));
  try {
    one.result = one.change(writer_);
  } catch (const std::bad_alloc&) {  // on a thread where others wait for us
    one.result = ResourceExhausted("no memory to change the metadata");
  }
  if (one.result.ok()) return writer_.Run("RELEASE one");
  // After errors like a full disk SQLite has rolled all back: then this fails.
  return writer_.Script("ROLLBACK TO one; RELEASE one").ok() ? absl::OkStatus() : one.result;
}

absl::StatusOr<int64_t> MetadataStore::Create(Kind kind, const std::string& key,
                                              const Chain& parent, const Labels& labels,
                                              const Placing& placing) {
  int64_t id = 0;
  RETURN_IF_ERROR(Write(
      [&](Database& db) -> absl::Status {
        ASSIGN_OR_RETURN(id, Insert(db, kind, key, parent, labels));
        return placing.move(id);
      },
      &placing));
  return id;
}

absl::StatusOr<ModelLayer> MetadataStore::CreateLayer(
    const std::string& name, const std::string& ns, const Chain& parent, const Labels& labels,
    const oci::Digest& chain_id, const oci::LayerLabel& label, const Placing& placing) {
  ModelLayer layer{0, chain_id, static_cast<uint32_t>(parent.ids.size()), label, ns};
  RETURN_IF_ERROR(Write(
      [&](Database& db) -> absl::Status {
        ASSIGN_OR_RETURN(layer.id, Insert(db, Kind::kCommitted, name, parent, labels));
        RETURN_IF_ERROR(SetLayer(db, layer));
        return placing.move(layer.id);
      },
      &placing));
  return layer;
}

absl::Status MetadataStore::ClaimLayer(const ModelLayer& layer) {
  return Write([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(const Record record, GetRecord(db, layer.id));
    if (record.info.kind != Kind::kActive)
      return FailedPrecondition("snapshot {} is not active", record.info.name);
    return SetLayer(db, layer);
  });
}

absl::Status MetadataStore::Commit(const std::string& name, const std::string& key,
                                   const Labels& labels, const Usage& usage) {
  return Write([&](Database& db) -> absl::Status {
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
  });
}

absl::StatusOr<Record> MetadataStore::Remove(const std::string& key) {
  Record record;
  RETURN_IF_ERROR(Write([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(record, GetRecord(db, key));
    ASSIGN_OR_RETURN(const bool child,
                     Exists(db, "SELECT 1 FROM snapshots WHERE parent_id = ? LIMIT 1", record.id));
    if (child) return FailedPrecondition("cannot remove snapshot with child: {}", key);
    return db.Run("DELETE FROM snapshots WHERE id = ?", record.id);
  }));
  return record;
}

absl::StatusOr<Info> MetadataStore::Update(const Info& info,
                                           const std::vector<std::string>& paths) {
  Record record;
  RETURN_IF_ERROR(Write([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(record, GetRecord(db, info.name));
    RETURN_IF_ERROR(ChangeLabels(record.info.labels, info, paths));
    record.info.updated_ns = Now();
    RETURN_IF_ERROR(db.Run("UPDATE snapshots SET updated_ns = ? WHERE id = ?",
                           record.info.updated_ns, record.id));
    return PutLabels(db, record.id, record.info.labels);
  }));
  return std::move(record.info);
}

absl::StatusOr<Record> MetadataStore::Get(const std::string& key) {
  absl::MutexLock lock(&read_mu_);
  ASSIGN_OR_RETURN(Transaction transaction, Transaction::BeginRead(reader_));
  return GetRecord(reader_, key);
}

absl::StatusOr<Record> MetadataStore::GetById(int64_t id) {
  absl::MutexLock lock(&read_mu_);
  ASSIGN_OR_RETURN(Transaction transaction, Transaction::BeginRead(reader_));
  return GetRecord(reader_, id);
}

absl::StatusOr<Chain> MetadataStore::GetChain(const std::string& name) {
  Chain chain;
  if (name.empty()) return chain;
  absl::MutexLock lock(&read_mu_);
  ASSIGN_OR_RETURN(Statement row, reader_.Query(kSelectChain, name));
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

absl::StatusOr<std::vector<Info>> MetadataStore::List() {
  absl::MutexLock lock(&read_mu_);
  ASSIGN_OR_RETURN(Transaction transaction, Transaction::BeginRead(reader_));
  std::map<int64_t, Labels> labels;
  ASSIGN_OR_RETURN(Statement label, reader_.Query("SELECT snapshot_id, name, value FROM labels"));
  while (true) {
    ASSIGN_OR_RETURN(const bool more, label.Step());
    if (!more) break;
    labels[label.Int(0)].emplace(label.Text(1), label.Text(2));
  }
  std::vector<Info> all;
  ASSIGN_OR_RETURN(Statement row, reader_.Query(kSelectRecord));
  while (true) {
    ASSIGN_OR_RETURN(const bool more, row.Step());
    if (!more) return all;
    ASSIGN_OR_RETURN(Record record, ReadRecord(row));
    record.info.labels = std::move(labels[record.id]);
    all.push_back(std::move(record.info));
  }
}

absl::StatusOr<std::vector<ModelLayer>> MetadataStore::ListLayers() {
  absl::MutexLock lock(&read_mu_);
  std::vector<ModelLayer> layers;
  ASSIGN_OR_RETURN(Statement row,
                   reader_.Query("SELECT id, chain_id, depth, layer, ns FROM snapshots"
                                 " WHERE layer IS NOT NULL AND kind = ? ORDER BY id",
                                 static_cast<int64_t>(Kind::kCommitted)));
  while (true) {
    ASSIGN_OR_RETURN(const bool more, row.Step());
    if (!more) return layers;
    ASSIGN_OR_RETURN(std::optional<ModelLayer> layer, ReadLayer(row, row.Int(0), 1));
    layers.push_back(*std::move(layer));
  }
}

absl::StatusOr<std::set<int64_t>> MetadataStore::ListIds() {
  absl::MutexLock lock(&read_mu_);
  std::set<int64_t> ids;
  ASSIGN_OR_RETURN(Statement row, reader_.Query("SELECT id FROM snapshots"));
  while (true) {
    ASSIGN_OR_RETURN(const bool more, row.Step());
    if (!more) return ids;
    ids.insert(row.Int(0));
  }
}

absl::StatusOr<std::map<Kind, size_t>> MetadataStore::CountByKind() {
  absl::MutexLock lock(&read_mu_);
  std::map<Kind, size_t> counts;
  ASSIGN_OR_RETURN(Statement row,
                   reader_.Query("SELECT kind, count(*) FROM snapshots GROUP BY kind"));
  while (true) {
    ASSIGN_OR_RETURN(const bool more, row.Step());
    if (!more) return counts;
    counts[static_cast<Kind>(row.Int(0))] = static_cast<size_t>(row.Int(1));
  }
}

absl::Status MetadataStore::TryWrite() {
  return Write([](Database& db) { return db.Script("PRAGMA user_version = 2"); });
}

}  // namespace kapsule::snapshotter
