// kapsule-fetch itself, as kapsule-snapshotter starts it, with a real registry.
#include <gmock/gmock.h>

#include "snapshotter/fetch/test_program.h"

namespace kapsule::fetch {
namespace {

using ::testing::HasSubstr;

std::string StatusOfProcess(pid_t pid) {
  const UniqueFd file = OpenFile(fmt::format("/proc/{}/status", pid), O_RDONLY).value();
  std::string text(8192, '\0');
  text.resize(static_cast<size_t>(std::max<ssize_t>(0, read(file.get(), text.data(), 8192))));
  return text;
}

TEST_F(FetchProgramTest, ALayerIsReadFromItsRegistryAsAUserWithoutRights) {
  StartFetch();
  Connect();
  absl::StatusOr<UniqueFd> file = Open(image_);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_NE(fcntl(file->get(), F_GETFL) & O_DIRECT, 0);
  EXPECT_EQ(fcntl(file->get(), F_GETFL) & O_ACCMODE, O_RDONLY);
  ASSERT_TRUE(fuse_->Get(name_.digest, {0, blocks_}));
  EXPECT_EQ(Read(*std::move(file), 0, layer_.header.covered_length),
            layer_.plain.substr(0, layer_.header.covered_length));
  const v1::FetchStats stats = Stats();
  EXPECT_EQ(stats.blocks_fetched(), blocks_);
  EXPECT_EQ(stats.open_blobs(), 1u);
  EXPECT_LT(stats.bytes_fetched(), layer_.bytes.size() + 2 * kMiB);
  const std::string status = StatusOfProcess(fetch_->pid());
  for (const char* line :
       {"Uid:\t65533\t65533\t65533\t65533", "Groups:\t \n", "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"})
    EXPECT_THAT(status, HasSubstr(line));
  EXPECT_EQ(fetch_->End(SIGTERM), 0);
}

TEST_F(FetchProgramTest, KilledInTheMiddleItGoesOnWithWhatWasStored) {
  StartFetch();
  Connect();
  ASSERT_TRUE(Open(image_).ok());
  ASSERT_TRUE(fuse_->Get(name_.digest, {0, 6}));
  EXPECT_EQ(fetch_->End(SIGTERM), 0);  // stores
  StartFetch();
  Connect();
  ASSERT_TRUE(Open(image_).ok());
  ASSERT_TRUE(fuse_->Until([&] { return fuse_->HasAll(name_.digest, {0, 6}); }));
  fuse_->Want(name_.digest, {6, blocks_ - 6});
  ASSERT_TRUE(fuse_->Until([&] { return fuse_->HasAll(name_.digest, {6, 2}); }));
  fetch_->End(SIGKILL);  // stores nothing
  StartFetch();
  Connect();
  fuse_->Want(name_.digest, {0, blocks_});  // before the snapshotter opens it
  absl::StatusOr<UniqueFd> file = Open(image_);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE(fuse_->Until([&] { return fuse_->HasAll(name_.digest, {0, blocks_}); }));
  EXPECT_LE(Stats().blocks_fetched(), blocks_ - 6);
  EXPECT_EQ(Read(*std::move(file), 0, layer_.header.covered_length),
            layer_.plain.substr(0, layer_.header.covered_length));
}

TEST_F(FetchProgramTest, ADamagedBlockIsMendedWhenItIsSuspected) {
  StartFetch();
  Connect();
  absl::StatusOr<UniqueFd> file = Open(image_);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE(fuse_->Get(name_.digest, {3, 1}));
  const UniqueFd damaged = OpenFile(folder_ / "cache" / name_.digest.hex(), O_WRONLY).value();
  ASSERT_EQ(pwrite(damaged.get(), "damage", 6, 3 * kMiB + 99), 6);
  ASSERT_EQ(fsync(damaged.get()), 0);
  fuse_->Send(name_.digest, control::FetchSuspect{3});
  ASSERT_TRUE(fuse_->Until([&] { return fuse_->checked == std::vector<uint64_t>{3}; }));
  EXPECT_EQ(Stats().mended(), 1u);
  EXPECT_EQ(Read(*std::move(file), 3 * kMiB, kMiB), layer_.plain.substr(3 * kMiB, kMiB));
}

TEST_F(FetchProgramTest, ReadsWaitWhileTheRegistryIsAway) {
  StartFetch();
  Connect();
  ASSERT_TRUE(Open(image_).ok());
  registry_ = nullptr;
  fuse_->Want(name_.digest, {0, 4});
  while (Stats().retries() < 2) absl::SleepFor(absl::Milliseconds(20));
  EXPECT_TRUE(fuse_->have[name_.digest].empty() || !fuse_->HasAll(name_.digest, {0, 4}));
  StartRegistry();
  EXPECT_TRUE(fuse_->Until([&] { return fuse_->HasAll(name_.digest, {0, 4}); }, absl::Seconds(30)));
  EXPECT_TRUE(fuse_->failed.empty());
}

TEST_F(FetchProgramTest, ReadsFailInTimeWhileTheRegistryIsAway) {
  StartFetch({"--read-timeout-ms", "700"});
  Connect();
  ASSERT_TRUE(Open(image_).ok());
  registry_ = nullptr;
  fuse_->Want(name_.digest, {0, 4});
  ASSERT_TRUE(fuse_->Until([&] { return !fuse_->failed.empty(); }));
  EXPECT_EQ(fuse_->failed.front().why.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(FetchProgramTest, ABlobThatTheRegistryHasNotIsNotFound) {
  StartFetch();
  const auto file = Open(fmt::format("127.0.0.1:{}/models/other:1", port_));
  EXPECT_EQ(file.status().code(), absl::StatusCode::kNotFound) << file.status();
  EXPECT_EQ(Open("no reference!").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(FetchProgramTest, WithoutControlItLivesAsLongAsKapsuleFuse) {
  StartFetch();
  Connect();
  ASSERT_TRUE(Open(image_).ok());
  control_.reset();
  ASSERT_TRUE(fuse_->Get(name_.digest, {0, 3}));
  EXPECT_TRUE(fetch_->Runs());
  fuse_ = nullptr;
  EXPECT_EQ(fetch_->Wait(), 0);

  StartFetch();
  v1::FetchRequest request;
  request.mutable_get_stats();
  Call(request);
  control_.reset();
  EXPECT_EQ(fetch_->Wait(), 0);
}

TEST_F(FetchProgramTest, ASecondOneWaitsForTheCache) {
  StartFetch();
  Connect();
  ASSERT_TRUE(Open(image_).ok());
  const std::unique_ptr<Process> first = std::move(fetch_);
  const UniqueFd first_control = std::move(control_);
  StartFetch({"--lock-wait-ms", "100"});
  EXPECT_EQ(fetch_->Wait(), 1);
  EXPECT_THAT(ReadFile(folder_ / "fetch.log", 1 << 20).value(), HasSubstr("end it first"));
  StartFetch();
  absl::SleepFor(absl::Milliseconds(100));
  EXPECT_EQ(first->End(SIGTERM), 0);
  ASSERT_TRUE(Open(image_).ok());
}

}  // namespace
}  // namespace kapsule::fetch
