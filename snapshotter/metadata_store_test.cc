#include "snapshotter/metadata_store.h"

#include <absl/synchronization/notification.h>
#include <absl/time/clock.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/resource.h>

#include <atomic>
#include <thread>

#include "snapshotter/test_support.h"

namespace kapsule::snapshotter {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr auto kPlaced = [](int64_t) { return absl::OkStatus(); };

oci::Digest DigestOf(std::string_view text) { return oci::Digest::Of(AsBytes(text)); }

oci::LayerLabel LabelOf(std::string_view text) {
  return {DigestOf(text), 1000, DigestOf("diff"), "model"};
}

class MetadataStoreTest : public testing::Test {
 protected:
  void SetUp() override { Reopen(); }
  void Reopen() {
    store_.reset();
    auto store = MetadataStore::Open(path_);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  absl::StatusOr<int64_t> Create(const std::string& key, const std::string& parent,
                                 const Labels& labels = {}) {
    ASSIGN_OR_RETURN(const Chain chain, store_->GetChain(parent));
    return store_->Create(Kind::kActive, key, chain, labels, kPlaced);
  }
  int64_t Committed(const std::string& name, const std::string& parent) {
    const absl::StatusOr<int64_t> id = Create(name + "-key", parent);
    EXPECT_TRUE(id.ok()) << id.status();
    EXPECT_TRUE(store_->Commit(name, name + "-key", {}, {10, 2}).ok());
    return *id;
  }
  // Of the error that opening the file gives now.
  absl::Status OpenError() {
    store_.reset();
    return MetadataStore::Open(path_).status();
  }

  TempDir dir_;
  const std::filesystem::path path_ = dir_ / "metadata.db";
  std::unique_ptr<MetadataStore> store_;
};

TEST_F(MetadataStoreTest, KeepsEverythingAcrossARestart) {
  const int64_t base = Committed("base", "");
  ASSERT_TRUE(Create("c1", "base", {{"l", "v"}, {"empty", ""}}).ok());
  const Info before = store_->Get("c1")->info;
  Reopen();
  const Record record = *store_->Get("c1");
  EXPECT_EQ(record.info.parent, "base");
  EXPECT_EQ(record.info.kind, Kind::kActive);
  EXPECT_EQ(record.info.labels, (Labels{{"l", "v"}}));
  EXPECT_EQ(record.info.created_ns, before.created_ns);
  EXPECT_EQ(record.info.created_ns, record.info.updated_ns);
  EXPECT_FALSE(record.layer);
  EXPECT_EQ(store_->Get("base")->usage, (Usage{10, 2}));
  EXPECT_EQ(*store_->ListIds(), (std::set<int64_t>{base, record.id}));
}

TEST_F(MetadataStoreTest, AKeyAndANameShareOneSpace) {
  Committed("a", "");
  EXPECT_EQ(Create("a", "").status().code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(Create("key", "").ok());
  EXPECT_EQ(store_->Commit("a", "key", {}, {}).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(store_->Get("key")->info.kind, Kind::kActive);
}

TEST_F(MetadataStoreTest, OnlyCommittedSnapshotsAreParents) {
  ASSERT_TRUE(Create("active", "").ok());
  EXPECT_EQ(Create("x", "active").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Create("x", "none").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(MetadataStoreTest, AParentThatWasRemovedMeanwhileIsNotFound) {
  Committed("base", "");
  const Chain chain = *store_->GetChain("base");
  ASSERT_TRUE(store_->Remove("base").ok());
  EXPECT_EQ(store_->Create(Kind::kView, "x", chain, {}, kPlaced).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(MetadataStoreTest, WhatCannotBePlacedIsNotRecorded) {
  const auto fail = [](int64_t) { return Internal("no space"); };
  EXPECT_EQ(store_->Create(Kind::kActive, "x", {}, {}, fail).status().code(),
            absl::StatusCode::kInternal);
  EXPECT_EQ(store_->CreateLayer("y", "", {}, {}, DigestOf("c"), LabelOf("b"), fail).status().code(),
            absl::StatusCode::kInternal);
  EXPECT_TRUE(store_->List()->empty());
  EXPECT_TRUE(Create("x", "").ok());
}

TEST_F(MetadataStoreTest, ChainsAreTopToBottomAndLayersBottomToTop) {
  const ModelLayer bottom =
      *store_->CreateLayer("l0", "k8s.io", {}, {}, DigestOf("c0"), LabelOf("b0"), kPlaced);
  const Chain below = *store_->GetChain("l0");
  EXPECT_TRUE(below.IsLayerOnTop());
  const ModelLayer middle =
      *store_->CreateLayer("l1", "", below, {{"r", "x"}}, DigestOf("c1"), LabelOf("b1"), kPlaced);
  EXPECT_EQ(bottom.depth, 0u);
  EXPECT_EQ(middle.depth, 1u);
  const int64_t top = Committed("top", "l1");
  Reopen();
  const Chain chain = *store_->GetChain("top");
  EXPECT_THAT(chain.ids, ElementsAre(top, middle.id, bottom.id));
  EXPECT_FALSE(chain.IsLayerOnTop());
  ASSERT_EQ(chain.layers.size(), 2u);
  EXPECT_EQ(chain.layers[0].id, bottom.id);
  EXPECT_EQ(chain.layers[1].chain_id, DigestOf("c1"));
  EXPECT_EQ(chain.layers[1].depth, 1u);
  EXPECT_EQ(chain.layers[1].label.digest, DigestOf("b1"));
  EXPECT_EQ(chain.layers[1].label.kind, "model");
  const std::vector<ModelLayer> layers = *store_->ListLayers();
  ASSERT_EQ(layers.size(), 2u);
  EXPECT_EQ(layers[0].ns, "k8s.io");
  EXPECT_EQ(layers[1].ns, "");
  EXPECT_EQ(chain.layers[0].ns, "k8s.io");
  const Record record = *store_->Get("l1");
  EXPECT_EQ(record.info.kind, Kind::kCommitted);
  EXPECT_EQ(record.info.labels, (Labels{{"r", "x"}}));
}

TEST_F(MetadataStoreTest, RemovesChildrenFirst) {
  Committed("base", "");
  ASSERT_TRUE(Create("child", "base").ok());
  const absl::Status status = store_->Remove("base").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), HasSubstr("cannot remove snapshot with child"));
  EXPECT_TRUE(store_->Remove("child").ok());
  EXPECT_TRUE(store_->Remove("base").ok());
  EXPECT_EQ(store_->Remove("base").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(MetadataStoreTest, NoIdIsUsedTwice) {
  const int64_t first = *Create("a", "");
  ASSERT_TRUE(store_->Remove("a").ok());
  Reopen();
  EXPECT_GT(*Create("a", ""), first);
}

TEST_F(MetadataStoreTest, CommitReplacesLabelsAndTimes) {
  ASSERT_TRUE(Create("key", "", {{"old", "x"}}).ok());
  const int64_t created = store_->Get("key")->info.created_ns;
  ASSERT_TRUE(store_->Commit("name", "key", {{"new", "y"}}, {7, 3}).ok());
  EXPECT_EQ(store_->Get("key").status().code(), absl::StatusCode::kNotFound);
  const Record record = *store_->Get("name");
  EXPECT_EQ(record.info.labels, (Labels{{"new", "y"}}));
  EXPECT_GT(record.info.created_ns, created);
  EXPECT_EQ(record.info.created_ns, record.info.updated_ns);
  EXPECT_EQ(record.usage, (Usage{7, 3}));
  EXPECT_EQ(store_->Commit("again", "name", {}, {}).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store_->Commit("again", "none", {}, {}).code(), absl::StatusCode::kNotFound);
}

TEST_F(MetadataStoreTest, UpdatesWhatTheMaskNames) {
  ASSERT_TRUE(Create("a", "", {{"l1", "v1"}, {"l2", "v2"}, {"x.y/z", "v"}}).ok());
  Info info{"a", "elsewhere", Kind::kView, 0, 0, {{"l1", "new"}, {"l4", "v4"}}};
  const Info one = *store_->Update(info, {"labels.l1", "labels.l2", "labels.x.y/z"});
  EXPECT_EQ(one.labels, (Labels{{"l1", "new"}}));
  EXPECT_EQ(one.parent, "");
  EXPECT_EQ(one.kind, Kind::kActive);
  EXPECT_GT(one.updated_ns, one.created_ns);
  EXPECT_EQ(store_->Update(info, {})->labels, info.labels);
  info.labels = {{"z", "1"}};
  EXPECT_EQ(store_->Update(info, {"labels"})->labels, info.labels);
  EXPECT_EQ(store_->Get("a")->info.labels, info.labels);
  EXPECT_EQ(store_->Update(info, {"labels", "parent"}).status().code(),
            absl::StatusCode::kInvalidArgument);
  info.name = "none";
  EXPECT_EQ(store_->Update(info, {}).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(MetadataStoreTest, KeysAreBytesNotPatterns) {
  const std::string key("a'\"%_\0;--\xc3\xa9", 11);
  ASSERT_TRUE(Create(key, "", {{"k'", "v\"; DROP TABLE labels"}}).ok());
  EXPECT_EQ(store_->Get(key)->info.name, key);
  EXPECT_EQ(store_->Get(key)->info.labels.at("k'"), "v\"; DROP TABLE labels");
  EXPECT_EQ(store_->Get("a'").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(MetadataStoreTest, ManyThreadsWriteAndReadAtOnce) {
  Committed("base", "");
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([this, t] {
      for (int i = 0; i < 12; ++i) {
        const std::string key = std::to_string(t) + "-" + std::to_string(i);
        EXPECT_TRUE(Create(key, "base").ok());
        EXPECT_TRUE(store_->Get(key).ok());
        EXPECT_TRUE(store_->List().ok());
        if (i % 2 == 0) {
          EXPECT_TRUE(store_->Remove(key).ok());
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(store_->List()->size(), 1u + 8 * 6);
}

TEST_F(MetadataStoreTest, ChangesThatComeMeanwhileAreWrittenTogether) {
  constexpr int kThreads = 20;
  absl::Notification all_started;
  std::atomic<int> started = 0;
  std::set<std::thread::id> writers;  // each writes once: its own record, and all that wait
  const auto place = [&](int64_t) {
    if (writers.insert(std::this_thread::get_id()).second) {
      all_started.WaitForNotification();
      absl::SleepFor(absl::Milliseconds(100));
    }
    return absl::OkStatus();
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      if (++started == kThreads) all_started.Notify();
      EXPECT_TRUE(store_->Create(Kind::kActive, std::to_string(t), {}, {}, place).ok());
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_LT(writers.size(), size_t{kThreads});
  Reopen();
  EXPECT_EQ(store_->List()->size(), static_cast<size_t>(kThreads));
  EXPECT_EQ(store_->ListIds()->size(), static_cast<size_t>(kThreads));
}

TEST_F(MetadataStoreTest, AChangeThatFailsTakesNoOtherWithIt) {
  const auto odd_fail = [](int64_t id) { return id % 2 == 1 ? Internal("odd") : absl::OkStatus(); };
  ASSERT_TRUE(Create("first", "").ok());
  std::atomic<int> made = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 10; ++i) {
        const std::string key = fmt::format("{}-{}", t, i);
        const auto id = store_->Create(Kind::kActive, key, {}, {{"l", key}}, odd_fail);
        EXPECT_EQ(store_->Get(key).ok(), id.ok());
        if (id.ok()) ++made;
        // The id of what was not recorded is free, so even ones are not left out.
        EXPECT_TRUE(Create(key + "-more", "").ok());
        EXPECT_EQ(Create("first", "").status().code(), absl::StatusCode::kAlreadyExists);
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(store_->List()->size(), 1u + 80u + static_cast<size_t>(made));
}

TEST_F(MetadataStoreTest, AFullDiskFailsEveryChangeOfItsTransaction) {
  Committed("base", "");
  const Labels large = {{"l", std::string(1 << 20, 'x')}};
  ASSERT_TRUE((*Database::Open(path_))->Script("PRAGMA wal_checkpoint(TRUNCATE)").ok());
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit tight = before;
  tight.rlim_cur = 512 << 10;
  const auto ignored = signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &tight), 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&, t] { EXPECT_FALSE(Create(std::to_string(t), "base", large).ok()); });
  for (std::thread& thread : threads) thread.join();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, ignored);
  EXPECT_EQ(store_->List()->size(), 1u);
  EXPECT_TRUE(Create("x", "base").ok());
}

TEST_F(MetadataStoreTest, RefusesTheFileOfAnotherVersion) {
  store_.reset();
  for (const auto& [version, age] : {std::pair(1, "older"), std::pair(3, "newer")}) {
    ASSERT_TRUE((*Database::Open(path_))
                    ->Script(fmt::format("PRAGMA user_version = {}", version).c_str())
                    .ok());
    const absl::Status status = OpenError();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(Message(status),
                AllOf(HasSubstr(path_.string()), HasSubstr(age),
                      HasSubstr(fmt::format("schema {}, this one knows 2", version))));
  }
}

TEST_F(MetadataStoreTest, ADamagedFileIsNamed) {
  store_.reset();
  for (const std::string& text : {std::string(4096, 'x'), "SQLite format 3" + std::string(1, '\0') +
                                                              std::string(4000, 'x')}) {
    std::filesystem::remove(path_);
    Write(path_, text);
    const absl::Status status = OpenError();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(Message(status), AllOf(HasSubstr(path_.string()), HasSubstr("damaged")));
  }
}

TEST_F(MetadataStoreTest, OverwrittenAndTruncatedPagesAreFoundOut) {
  for (int i = 0; i < 40; ++i) Committed("name-" + std::to_string(i), "");
  store_.reset();
  const std::string good = Read(path_);
  ASSERT_GE(good.size(), 3 * 4096u);
  for (size_t page = 1; page < good.size() / 4096; ++page) {
    std::string bad = good;
    bad.replace(page * 4096, 4096, std::string(4096, '\xee'));
    Write(path_, bad);
    EXPECT_EQ(OpenError().code(), absl::StatusCode::kDataLoss) << "page " << page;
  }
  for (size_t size = 4096; size < good.size(); size += 4096) {
    Write(path_, good.substr(0, size));
    EXPECT_EQ(OpenError().code(), absl::StatusCode::kDataLoss) << size << " bytes";
  }
  Write(path_, good);
  Reopen();
  EXPECT_EQ(store_->List()->size(), 40u);
}

TEST_F(MetadataStoreTest, ADamagedLayerRecordIsDataLoss) {
  ASSERT_TRUE(store_->CreateLayer("l", "ns", {}, {}, DigestOf("c"), LabelOf("b"), kPlaced).ok());
  store_.reset();
  ASSERT_TRUE((*Database::Open(path_))->Script("UPDATE snapshots SET layer = '{'").ok());
  Reopen();
  EXPECT_EQ(store_->ListLayers().status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(store_->GetChain("l").status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(MetadataStoreTest, CountsSnapshotsByKind) {
  ASSERT_TRUE(store_->Create(Kind::kActive, "a", {}, {}, kPlaced).ok());
  ASSERT_TRUE(store_->Create(Kind::kActive, "b", {}, {}, kPlaced).ok());
  ASSERT_TRUE(store_->Commit("c", "a", {}, {}).ok());
  ASSERT_TRUE(store_->CreateLayer("l", "ns", {}, {}, DigestOf("c"), LabelOf("b"), kPlaced).ok());
  EXPECT_EQ(store_->CountByKind().value(),
            (std::map<Kind, size_t>{{Kind::kActive, 1}, {Kind::kCommitted, 2}}));
}

TEST_F(MetadataStoreTest, TryingToWriteWritesAndChangesNothing) {
  ASSERT_TRUE(store_->Create(Kind::kActive, "a", {}, {}, kPlaced).ok());
  const std::string wal = path_.string() + "-wal";
  const auto before = std::filesystem::file_size(wal);
  EXPECT_EQ(store_->TryWrite(), absl::OkStatus());
  EXPECT_GT(std::filesystem::file_size(wal), before);
  Reopen();
  EXPECT_EQ(store_->List()->size(), 1u);
}

TEST_F(MetadataStoreTest, AFolderThatIsMissingIsNamed) {
  const absl::Status status = MetadataStore::Open(dir_ / "none/metadata.db").status();
  EXPECT_THAT(Message(status), HasSubstr((dir_ / "none/metadata.db").string()));
}

}  // namespace
}  // namespace kapsule::snapshotter
