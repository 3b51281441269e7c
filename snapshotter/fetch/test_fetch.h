// What the tests of this folder share: a source in memory that can go wrong, a
// cache folder, and the other end of the data socket.
#pragma once

#include <absl/synchronization/mutex.h>
#include <absl/time/clock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <new>
#include <set>
#include <string>
#include <utility>

#include "core/base/unix_socket.h"
#include "core/blob/test_layer.h"
#include "snapshotter/fetch/data_link.h"

namespace kapsule::fetch {

class TestSource final : public RangeSource {
 public:
  explicit TestSource(std::string bytes) : bytes_(std::move(bytes)) {}

  absl::Status Read(uint64_t offset, uint64_t length, const Sink& sink,
                    const ReadLimits& limits) override {
    {
      absl::MutexLock lock(&mu_);
      reads_.push_back({offset, length});
      mu_.AwaitWithDeadline(absl::Condition(&open_), limits.deadline);
      if (!open_) return DeadlineExceeded("held by the test");
      if (!failure_.ok()) return failure_;
      if (std::exchange(no_memory_, false)) throw std::bad_alloc();
    }
    constexpr uint64_t kPiece = 100'000;  // ends in the middle of blocks
    for (uint64_t at = offset; at < offset + length; at += kPiece) {
      if (limits.stopped && limits.stopped()) return Cancelled("stopped");
      std::string piece = bytes_.substr(at, std::min(kPiece, offset + length - at));
      {
        absl::MutexLock lock(&mu_);
        if (broken_at_ >= at && broken_at_ < at + piece.size()) piece[broken_at_ - at] ^= 1;
      }
      RETURN_IF_ERROR(sink(AsBytes(piece)));
    }
    return absl::OkStatus();
  }

  void Hold(bool hold) {
    absl::MutexLock lock(&mu_);
    open_ = !hold;
  }
  void FailWith(absl::Status failure) {
    absl::MutexLock lock(&mu_);
    failure_ = std::move(failure);
  }
  void RunOutOfMemory() {  // once
    absl::MutexLock lock(&mu_);
    no_memory_ = true;
  }
  void BreakByte(uint64_t offset) {
    absl::MutexLock lock(&mu_);
    broken_at_ = offset;
  }
  std::vector<std::pair<uint64_t, uint64_t>> reads() const {
    absl::MutexLock lock(&mu_);
    return reads_;
  }
  size_t ReadsOf(uint64_t byte) const {
    size_t count = 0;
    for (const auto& [offset, length] : reads()) count += byte >= offset && byte < offset + length;
    return count;
  }

 private:
  const std::string bytes_;
  mutable absl::Mutex mu_;
  std::vector<std::pair<uint64_t, uint64_t>> reads_ ABSL_GUARDED_BY(mu_);
  bool open_ ABSL_GUARDED_BY(mu_) = true;
  bool no_memory_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  uint64_t broken_at_ ABSL_GUARDED_BY(mu_) = ~uint64_t{0};
};

// An encrypted layer of one file of `size` bytes.
inline blob::TestLayer LayerOf(size_t size, uint32_t seed = 1) {
  std::vector<blob::TestFile> files;
  files.push_back({archive::DirectoryEntry(""), ""});
  files.push_back(blob::MakeTestFile("weights", blob::TestBytes(size, seed)));
  return blob::BuildTestLayer(files, /*encrypted=*/true);
}

inline BlobName NameOf(const blob::TestLayer& layer) {
  return {oci::Digest::Of(AsBytes(layer.bytes)), layer.bytes.size(), layer.ref};
}

// kapsule-fuse's end of the data socket.
class FakeFuse {
 public:
  explicit FakeFuse(UniqueFd socket) : socket_(std::move(socket)) {
    EXPECT_TRUE(SetTimeout(socket_.get(), 100).ok());
  }
  void Send(const oci::Digest& blob, decltype(control::FetchPacket::body) body) {
    EXPECT_TRUE(
        control::SendFetchPacket(socket_.get(), {blob, std::move(body)}, control::FetchSend::kWait)
            .ok());
  }
  void Want(const oci::Digest& blob, Range blocks) {
    Send(blob, control::FetchWant{blocks.first, static_cast<uint32_t>(blocks.count)});
  }
  // Receives until `done`; false after `limit`.
  template <typename Done>
  bool Until(Done&& done, absl::Duration limit = absl::Seconds(30)) {
    const absl::Time end = absl::Now() + limit;
    while (!done()) {
      if (absl::Now() > end) return false;
      const auto packet = control::ReceiveFetchPacket(socket_.get());
      if (packet.ok()) Take(*packet);
    }
    return true;
  }
  bool HasAll(const oci::Digest& blob, Range blocks) {
    for (uint64_t block = blocks.first; block < blocks.end(); ++block)
      if (!have[blob].contains(block)) return false;
    return true;
  }
  bool Get(const oci::Digest& blob, Range blocks, absl::Duration limit = absl::Seconds(30)) {
    Want(blob, blocks);
    return Until([&] { return HasAll(blob, blocks); }, limit);
  }

  std::map<oci::Digest, std::set<uint64_t>> have;
  std::vector<control::FetchFailed> failed;
  std::vector<uint64_t> checked;
  std::map<uint64_t, int> asked;  // by block: how often it was to be dropped
  uint64_t dropped = 0;           // blocks
  bool lets_go = true;            // answers Drop

 private:
  void Take(const control::FetchPacket& packet) {
    std::set<uint64_t>& blocks = have[packet.blob];
    if (const auto* p = std::get_if<control::FetchHave>(&packet.body)) {
      for (size_t i = 0; i < p->blocks.size(); ++i)
        if (p->blocks[i]) blocks.insert(p->first + i);
    } else if (const auto* p = std::get_if<control::FetchFailed>(&packet.body)) {
      failed.push_back(*p);
    } else if (const auto* p = std::get_if<control::FetchChecked>(&packet.body)) {
      checked.push_back(p->block);
    } else if (const auto* p = std::get_if<control::FetchDrop>(&packet.body)) {
      for (uint64_t i = 0; i < p->count; ++i) ++asked[p->first + i];
      if (!lets_go) return;
      dropped += p->count;
      for (uint64_t i = 0; i < p->count; ++i) blocks.erase(p->first + i);
      Send(packet.blob, control::FetchDropped{p->first, p->count, p->question});
    }
  }
  const UniqueFd socket_;
};

// A fetcher over a folder of its own; any blob comes from `source`.
class FetchTest : public testing::Test {
 protected:
  FetchTest() {
    char name[] = "/tmp/kapsule-fetch-test-XXXXXX";
    path_ = mkdtemp(name);
  }
  ~FetchTest() override {
    End();
    EXPECT_TRUE(RemoveTree(path_).ok());
  }

  void Begin(FetcherOptions options = Quiet()) {
    folder_ = CacheFolder::Open(path_ / "cache", geteuid(), getegid(), absl::Seconds(5)).value();
    fetcher_ = std::make_unique<Fetcher>(
        *folder_, options,
        [this](const Origin& origin) -> absl::StatusOr<std::shared_ptr<RangeSource>> {
          return sources_.at(origin.digest);
        },
        outbox_);
    ASSERT_TRUE(fetcher_->Start().ok());
    Connect();
  }
  void Connect() {
    int fds[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    link_ = nullptr;
    fuse_ = std::make_unique<FakeFuse>(UniqueFd(fds[0]));
    link_ = DataLink::Start(UniqueFd(fds[1]), *fetcher_, outbox_, [] {}).value();
  }
  void End() {
    link_ = nullptr;
    fuse_ = nullptr;
    fetcher_ = nullptr;
    folder_ = nullptr;
  }
  static FetcherOptions Quiet() { return {.fill = Fill::kOff, .connections = 4}; }

  std::shared_ptr<TestSource> Serve(const blob::TestLayer& layer) {
    auto source = std::make_shared<TestSource>(layer.bytes);
    sources_[NameOf(layer).digest] = source;
    return source;
  }
  absl::StatusOr<UniqueFd> Open(const blob::TestLayer& layer,
                                absl::Duration limit = absl::Seconds(30)) {
    const BlobName name = NameOf(layer);
    return fetcher_->Open(name, {name.digest, name.size, {}, {}}, absl::Now() + limit);
  }
  std::filesystem::path FileOf(const blob::TestLayer& layer) const {
    return path_ / "cache" / NameOf(layer).digest.hex();
  }
  static uint64_t BlocksOf(const blob::TestLayer& layer) {
    return CeilDiv(layer.header.covered_length, layer.header.block_size);
  }

  std::filesystem::path path_;
  std::map<oci::Digest, std::shared_ptr<TestSource>> sources_;
  Outbox outbox_;
  std::unique_ptr<CacheFolder> folder_;
  std::unique_ptr<Fetcher> fetcher_;
  std::unique_ptr<FakeFuse> fuse_;
  std::unique_ptr<DataLink> link_;
};

}  // namespace kapsule::fetch
