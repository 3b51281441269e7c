#include "snapshotter/sqlite.h"

namespace kapsule::snapshotter {
namespace {

constexpr int kBusyTimeoutMs = 5000;

absl::Status SqliteError(sqlite3* db, int code) {
  const char* name = sqlite3_db_filename(db, "main");
  const std::string what =
      fmt::format("{}: {}", name == nullptr ? "metadata" : name, sqlite3_errmsg(db));
  switch (code & 0xff) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return DataLoss("{}: the metadata is damaged: move its folder away and pull the images again",
                      what);
    case SQLITE_CONSTRAINT:
      if (code == SQLITE_CONSTRAINT_UNIQUE || code == SQLITE_CONSTRAINT_PRIMARYKEY)
        return AlreadyExists("{}", what);
      return FailedPrecondition("{}", what);
    case SQLITE_FULL:
      return ResourceExhausted("{}", what);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return Unavailable("{}", what);
    default:
      return Internal("{} (SQLite error {})", what, code);
  }
}

}  // namespace

void Statement::Bind(int index, int64_t value) {
  const int code = sqlite3_bind_int64(statement_.get(), index, value);
  if (code != SQLITE_OK) bind_error_ = code;
}

void Statement::Bind(int index, std::string_view text) {
  const int code = sqlite3_bind_text64(statement_.get(), index, text.data(), text.size(),
                                       SQLITE_TRANSIENT, SQLITE_UTF8);
  if (code != SQLITE_OK) bind_error_ = code;
}

absl::StatusOr<bool> Statement::Step() {
  sqlite3* db = sqlite3_db_handle(statement_.get());
  if (bind_error_ != SQLITE_OK) return SqliteError(db, bind_error_);
  const int code = sqlite3_step(statement_.get());
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return SqliteError(db, code);
}

std::string Statement::Text(int column) const {
  const unsigned char* text = sqlite3_column_text(statement_.get(), column);
  if (text == nullptr) return {};
  return {reinterpret_cast<const char*>(text),
          static_cast<size_t>(sqlite3_column_bytes(statement_.get(), column))};
}

bool Statement::IsNull(int column) const {
  return sqlite3_column_type(statement_.get(), column) == SQLITE_NULL;
}

absl::StatusOr<std::unique_ptr<Database>> Database::Open(const std::filesystem::path& path) {
  sqlite3* raw = nullptr;
  // One connection is used by one thread at a time, so SQLite needs no mutex.
  const int code =
      sqlite3_open_v2(path.c_str(), &raw,
                      SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, nullptr);
  if (raw == nullptr) return ResourceExhausted("{}: no memory for SQLite", path.string());
  std::unique_ptr<Database> db(new Database(raw));
  if (code != SQLITE_OK) return Annotate(SqliteError(raw, code), "open " + path.string());
  sqlite3_extended_result_codes(raw, 1);
  sqlite3_busy_timeout(raw, kBusyTimeoutMs);
  return db;
}

void Statement::GiveBack::operator()(sqlite3_stmt* statement) const {
  sqlite3_reset(statement);
  sqlite3_clear_bindings(statement);
  // Nothing is allocated here. There is one already where two were in use at once.
  const auto kept = owner->compiled_.find(sql);
  if (kept != owner->compiled_.end() && kept->second == nullptr) {
    kept->second.reset(statement);
  } else {
    sqlite3_finalize(statement);
  }
}

absl::StatusOr<Statement> Database::Prepare(const char* sql) {
  Compiled& kept = compiled_.try_emplace(sql, nullptr, sqlite3_finalize).first->second;
  if (kept != nullptr) return Statement(kept.release(), this, sql);
  sqlite3_stmt* raw = nullptr;
  const int code = sqlite3_prepare_v3(db_.get(), sql, -1, SQLITE_PREPARE_PERSISTENT, &raw, nullptr);
  if (code != SQLITE_OK) return SqliteError(db_.get(), code);
  return Statement(raw, this, sql);
}

absl::Status Database::Script(const char* sql) {
  const int code = sqlite3_exec(db_.get(), sql, nullptr, nullptr, nullptr);
  if (code != SQLITE_OK) return SqliteError(db_.get(), code);
  return absl::OkStatus();
}

absl::StatusOr<int64_t> Database::Number(const char* sql) {
  ASSIGN_OR_RETURN(Statement statement, Prepare(sql));
  ASSIGN_OR_RETURN(const bool row, statement.Step());
  return row ? statement.Int(0) : 0;
}

absl::StatusOr<Transaction> Transaction::BeginWrite(Database& db) {
  RETURN_IF_ERROR(db.Script("BEGIN IMMEDIATE"));
  return Transaction(db);
}

absl::StatusOr<Transaction> Transaction::BeginRead(Database& db) {
  RETURN_IF_ERROR(db.Script("BEGIN"));
  return Transaction(db);
}

Transaction::~Transaction() {
  // SQLite has rolled back by itself after some errors; then this has no effect.
  if (db_ != nullptr) db_->Script("ROLLBACK").IgnoreError();
}

absl::Status Transaction::Commit() {
  RETURN_IF_ERROR(db_->Script("COMMIT"));  // a failed COMMIT is rolled back
  db_ = nullptr;
  return absl::OkStatus();
}

}  // namespace kapsule::snapshotter
