#include "snapshotter/metadata_store.h"

#include <new>
#include <utility>

#include "snapshotter/metadata_changes.h"
#include "snapshotter/metadata_schema.h"

namespace kapsule::snapshotter {

MetadataStore::MetadataStore(std::unique_ptr<Database> writer, std::unique_ptr<Database> reader)
    : writer_owner_(std::move(writer)),
      reader_owner_(std::move(reader)),
      writer_(*writer_owner_),
      reader_(*reader_owner_) {}

absl::StatusOr<std::unique_ptr<MetadataStore>> MetadataStore::Open(
    const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<Database> writer, OpenMetadata(path));
  ASSIGN_OR_RETURN(std::unique_ptr<Database> reader, OpenMetadataReader(path));
  return std::unique_ptr<MetadataStore>(new MetadataStore(std::move(writer), std::move(reader)));
}

absl::Status MetadataStore::Write(Change change) {
  Waiting own{change};
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
  for (Waiting* one : all) RETURN_IF_ERROR(WriteOne(*one));
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
                                              Place place) {
  int64_t id = 0;
  RETURN_IF_ERROR(Write([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(id, InsertRecord(db, kind, key, parent, labels));
    return place(id);
  }));
  return id;
}

absl::StatusOr<ModelLayer> MetadataStore::CreateLayer(const std::string& name,
                                                      const std::string& ns, const Chain& parent,
                                                      const Labels& labels,
                                                      const oci::Digest& chain_id,
                                                      const oci::LayerLabel& label, Place place) {
  ModelLayer layer{0, chain_id, static_cast<uint32_t>(parent.ids.size()), label, ns};
  RETURN_IF_ERROR(Write([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(layer.id, InsertRecord(db, Kind::kCommitted, name, parent, labels));
    RETURN_IF_ERROR(SetLayer(db, layer));
    return place(layer.id);
  }));
  return layer;
}

absl::Status MetadataStore::ClaimLayer(const ModelLayer& layer) {
  return Write([&](Database& db) { return snapshotter::ClaimLayer(db, layer); });
}

absl::Status MetadataStore::Commit(const std::string& name, const std::string& key,
                                   const Labels& labels, const Usage& usage) {
  return Write([&](Database& db) { return CommitRecord(db, name, key, labels, usage); });
}

absl::StatusOr<Record> MetadataStore::Remove(const std::string& key) {
  Record record;
  RETURN_IF_ERROR(Write([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(record, RemoveRecord(db, key));
    return absl::OkStatus();
  }));
  return record;
}

absl::StatusOr<Info> MetadataStore::Update(const Info& info,
                                           const std::vector<std::string>& paths) {
  Info updated;
  RETURN_IF_ERROR(Write([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(updated, UpdateLabels(db, info, paths));
    return absl::OkStatus();
  }));
  return updated;
}

absl::Status MetadataStore::TryWrite() {
  return Write([](Database& db) { return db.Script("PRAGMA user_version = 2"); });
}

template <typename Query>
std::invoke_result_t<Query, Database&> MetadataStore::Read(Query query) {
  absl::MutexLock lock(&read_mu_);
  return query(reader_);
}

// Of several statements, each sees the same.
template <typename Query>
std::invoke_result_t<Query, Database&> MetadataStore::ReadTogether(Query query) {
  absl::MutexLock lock(&read_mu_);
  ASSIGN_OR_RETURN(Transaction transaction, Transaction::BeginRead(reader_));
  return query(reader_);
}

absl::StatusOr<Record> MetadataStore::Get(const std::string& key) {
  return ReadTogether([&](Database& db) { return GetRecord(db, key); });
}

absl::StatusOr<Record> MetadataStore::GetById(int64_t id) {
  return ReadTogether([&](Database& db) { return GetRecord(db, id); });
}

absl::StatusOr<Chain> MetadataStore::GetChain(const std::string& name) {
  return Read([&](Database& db) { return snapshotter::GetChain(db, name); });
}

absl::StatusOr<std::vector<Info>> MetadataStore::List() {
  return ReadTogether([](Database& db) { return ListInfos(db); });
}

absl::StatusOr<std::vector<ModelLayer>> MetadataStore::ListLayers() {
  return Read([](Database& db) { return snapshotter::ListLayers(db); });
}

absl::StatusOr<std::set<int64_t>> MetadataStore::ListIds() {
  return Read([](Database& db) { return snapshotter::ListIds(db); });
}

absl::StatusOr<std::map<Kind, size_t>> MetadataStore::CountByKind() {
  return Read([](Database& db) { return snapshotter::CountByKind(db); });
}

}  // namespace kapsule::snapshotter
