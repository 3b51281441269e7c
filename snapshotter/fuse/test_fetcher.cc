#include "snapshotter/fuse/test_fetcher.h"

#include <absl/time/clock.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

namespace kapsule::fuse::testing {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(30);

std::string PathOf(const std::filesystem::path& folder, bool encrypted) {
  return folder / (encrypted ? "cache-encrypted" : "cache-plain");
}

}  // namespace

TestFetcher::TestFetcher(const TestNode& node) : folder_(node.folder()) {
  absl::MutexLock lock(&mu_);
  for (const bool encrypted : {false, true}) {
    Layer& layer = layers_[encrypted];
    layer.made = &node.LayerOf(encrypted);
    layer.digest = TestNode::DigestOf(encrypted);
    const archive::IndexHeader& header = layer.made->header;
    layer.blocks = CeilDiv(header.covered_length, header.block_size);
    MakeFile(encrypted);
  }
}

void TestFetcher::MakeFile(bool encrypted) {
  Layer& layer = layers_[encrypted];
  const archive::IndexHeader& header = layer.made->header;
  layer.file =
      OpenFile(PathOf(folder_, encrypted), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600).value();
  const std::string_view index = std::string_view(layer.made->bytes).substr(header.covered_length);
  EXPECT_EQ(pwrite(layer.file.get(), index.data(), index.size(),
                   static_cast<off_t>(header.covered_length)),
            ssize_t(index.size()));
  for (uint64_t block = header.tar_length / header.block_size; block < layer.blocks; ++block)
    Fill(layer, block);
}

void TestFetcher::BeginAnew(bool encrypted, bool keep) {
  absl::MutexLock lock(&mu_);
  layers_[encrypted].there.clear();
  const std::string path = PathOf(folder_, encrypted);
  if (keep) {
    EXPECT_EQ(rename(path.c_str(), (path + "-moved").c_str()), 0);
  } else {
    EXPECT_EQ(unlink(path.c_str()), 0);
  }
  MakeFile(encrypted);
}

TestFetcher::~TestFetcher() { Disconnect(); }

UniqueFd TestFetcher::OpenFileOf(bool encrypted) const {
  return OpenFile(PathOf(folder_, encrypted), O_RDONLY | O_CLOEXEC).value();
}

void TestFetcher::Disconnect() {
  {
    absl::MutexLock lock(&mu_);
    if (socket_.valid()) shutdown(socket_.get(), SHUT_RDWR);
  }
  if (thread_.joinable()) thread_.join();
  absl::MutexLock lock(&mu_);
  socket_ = UniqueFd();
}

UniqueFd TestFetcher::Connect() {
  Disconnect();
  control::SocketPair pair = control::MakeSocketPair().value();
  const int socket = pair.ours.get();
  {
    absl::MutexLock lock(&mu_);
    for (Layer& layer : layers_) layer.wanted.clear();  // another process knows nothing of it
    socket_ = std::move(pair.ours);
  }
  thread_ = std::thread([this, socket] { Receive(socket); });
  return std::move(pair.theirs);
}

void TestFetcher::Receive(int socket) {
  for (;;) {
    const absl::StatusOr<control::FetchPacket> packet = control::ReceiveFetchPacket(socket);
    if (!packet.ok()) {
      EXPECT_TRUE(absl::IsUnavailable(packet.status())) << packet.status();
      return;
    }
    absl::MutexLock lock(&mu_);
    Answer(*packet);
    changed_.SignalAll();
  }
}

void TestFetcher::Answer(const control::FetchPacket& packet) {
  Layer& layer = layers_[packet.blob == layers_[1].digest];
  ASSERT_EQ(packet.blob, layer.digest);
  if (const auto* const want = std::get_if<control::FetchWant>(&packet.body)) {
    for (uint64_t i = 0; i < want->count; ++i) layer.wanted.insert(want->first + i);
    Serve(layer);
  } else if (const auto* const suspect = std::get_if<control::FetchSuspect>(&packet.body)) {
    ++layer.suspected;
    if (!layer.manner.lies) Fill(layer, suspect->block);
    layer.dropping.erase(suspect->block);
    Say(layer, control::FetchChecked{suspect->block, FileOf(layer)});
  } else {
    const auto& dropped = std::get<control::FetchDropped>(packet.body);
    if (dropped.question != layer.question) return;  // there has been another since
    for (uint64_t block = dropped.first; block < dropped.first + dropped.count; ++block)
      if (layer.dropping.erase(block) != 0) Punch(layer, block);
  }
}

void TestFetcher::Serve(Layer& layer) {
  if (layer.manner.silent) return;
  for (const uint64_t block : std::exchange(layer.wanted, {})) {
    ASSERT_LT(block, layer.blocks);
    if (!layer.manner.failure.ok()) {
      Say(layer, control::FetchFailed{block, 1, layer.manner.failure});
      continue;
    }
    if (layer.there.count(block) == 0) Fill(layer, block);
    layer.dropping.erase(block);
    control::FetchHave have{block, {}, FileOf(layer)};
    have.blocks.set(0);
    Say(layer, have);
  }
}

control::FetchFile TestFetcher::FileOf(const Layer& layer) {
  struct stat st = {};
  EXPECT_EQ(fstat(layer.file.get(), &st), 0);
  return {st.st_dev, st.st_ino};
}

void TestFetcher::Fill(Layer& layer, uint64_t block) {
  const archive::IndexHeader& header = layer.made->header;
  const uint64_t begin = block * header.block_size;
  const size_t size = std::min<uint64_t>(header.block_size, header.covered_length - begin);
  EXPECT_EQ(
      pwrite(layer.file.get(), layer.made->bytes.data() + begin, size, static_cast<off_t>(begin)),
      ssize_t(size));
  layer.there.insert(block);
}

void TestFetcher::Punch(Layer& layer, uint64_t block) {
  const archive::IndexHeader& header = layer.made->header;
  const uint64_t begin = block * header.block_size;
  const uint64_t size = std::min<uint64_t>(header.block_size, header.covered_length - begin);
  EXPECT_EQ(fallocate(layer.file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      static_cast<off_t>(begin), static_cast<off_t>(size)),
            0);
  layer.there.erase(block);
}

template <typename Body>
void TestFetcher::Say(const Layer& layer, Body body) {
  static_cast<void>(control::SendFetchPacket(socket_.get(), {layer.digest, std::move(body)},
                                             control::FetchSend::kWait));
}

void TestFetcher::Behave(bool encrypted, const Manner& manner) {
  absl::MutexLock lock(&mu_);
  layers_[encrypted].manner = manner;
  Serve(layers_[encrypted]);
}

void TestFetcher::Damage(bool encrypted, uint64_t block) const {
  absl::MutexLock lock(&mu_);
  const Layer& layer = layers_[encrypted];
  const auto at = static_cast<off_t>(block * layer.made->header.block_size + 70'000);
  char byte;
  EXPECT_EQ(pread(layer.file.get(), &byte, 1, at), 1);
  byte = static_cast<char>(byte ^ 1);
  EXPECT_EQ(pwrite(layer.file.get(), &byte, 1, at), 1);
}

void TestFetcher::Drop(bool encrypted) {
  absl::MutexLock lock(&mu_);
  Layer& layer = layers_[encrypted];
  layer.dropping = layer.there;
  Say(layer, control::FetchDrop{0, static_cast<uint32_t>(layer.blocks), ++layer.question});
}

template <typename Condition>
bool TestFetcher::Await(const Condition& condition) {
  const absl::Time deadline = absl::Now() + kPatience;
  while (!condition() && absl::Now() < deadline) changed_.WaitWithDeadline(&mu_, deadline);
  return condition();
}

bool TestFetcher::AwaitWants(bool encrypted, size_t blocks) {
  absl::MutexLock lock(&mu_);
  const Layer& layer = layers_[encrypted];
  return Await([&] { return layer.wanted.size() >= blocks; });
}

bool TestFetcher::AwaitDropped(bool encrypted) {
  absl::MutexLock lock(&mu_);
  const Layer& layer = layers_[encrypted];
  return Await([&] { return layer.there.empty(); });
}

size_t TestFetcher::suspected(bool encrypted) const {
  absl::MutexLock lock(&mu_);
  return layers_[encrypted].suspected;
}

}  // namespace kapsule::fuse::testing
