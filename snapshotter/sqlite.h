// SQLite with Status: a connection, its statements and transactions.
#pragma once

#include <sqlite3.h>

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "core/base/status.h"

namespace kapsule::snapshotter {

class Database;

// A prepared statement with its values. Not thread-safe; must not outlive its
// connection, which gets it back to use it again.
class Statement {
 public:
  // Number `index` counts from 1. A value that SQLite refuses fails Step().
  void Bind(int index, int64_t value);
  void Bind(int index, std::string_view text);
  template <typename T>
  void Bind(int index, const std::optional<T>& value) {
    if (value) Bind(index, *value);  // otherwise it stays NULL
  }

  // True where there is a row to read, false at the end.
  absl::StatusOr<bool> Step();

  // Columns of the row, counted from 0.
  int64_t Int(int column) const { return sqlite3_column_int64(statement_.get(), column); }
  std::string Text(int column) const;
  bool IsNull(int column) const;

 private:
  friend class Database;
  struct GiveBack {
    void operator()(sqlite3_stmt* statement) const;
    Database* owner;
    const char* sql;
  };
  Statement(sqlite3_stmt* statement, Database* owner, const char* sql)
      : statement_(statement, GiveBack{owner, sql}) {}

  std::unique_ptr<sqlite3_stmt, GiveBack> statement_;
  int bind_error_ = SQLITE_OK;
};

// One connection. Not thread-safe. Errors name the file:
//   DataLoss            it is damaged, or no database
//   AlreadyExists       a value that must be unique
//   FailedPrecondition  a foreign key
//   ResourceExhausted   the disk is full
//   Unavailable         another process holds the database
class Database {
 public:
  static absl::StatusOr<std::unique_ptr<Database>> Open(const std::filesystem::path& path);

  // `sql` is a literal, by whose address the compiled statement is kept.
  template <typename... Values>
  absl::StatusOr<Statement> Query(const char* sql, const Values&... values) {
    ASSIGN_OR_RETURN(Statement statement, Prepare(sql));
    int index = 0;
    (statement.Bind(++index, values), ...);
    return statement;
  }

  // Runs a statement to its end.
  template <typename... Values>
  absl::Status Run(const char* sql, const Values&... values) {
    ASSIGN_OR_RETURN(Statement statement, Query(sql, values...));
    absl::StatusOr<bool> row = true;
    while (row.ok() && *row) row = statement.Step();
    return row.status();
  }

  // Several statements without values.
  absl::Status Script(const char* sql);

  // The number in the first column of a query's only row.
  absl::StatusOr<int64_t> Number(const char* sql);

  int64_t last_id() const { return sqlite3_last_insert_rowid(db_.get()); }

 private:
  friend struct Statement::GiveBack;
  using Compiled = std::unique_ptr<sqlite3_stmt, int (*)(sqlite3_stmt*)>;

  explicit Database(sqlite3* db) : db_(db, sqlite3_close) {}
  absl::StatusOr<Statement> Prepare(const char* sql);

  const std::unique_ptr<sqlite3, int (*)(sqlite3*)> db_;
  std::map<const char*, Compiled> compiled_;  // null while in use
};

// Rolls back unless committed.
class Transaction {
 public:
  // A write transaction takes the lock at once, so that it cannot fail for it
  // half-way.
  static absl::StatusOr<Transaction> BeginWrite(Database& db);
  static absl::StatusOr<Transaction> BeginRead(Database& db);
  Transaction(Transaction&& other) noexcept : db_(std::exchange(other.db_, nullptr)) {}
  ~Transaction();
  absl::Status Commit();

 private:
  explicit Transaction(Database& db) : db_(&db) {}
  Database* db_;
};

}  // namespace kapsule::snapshotter
