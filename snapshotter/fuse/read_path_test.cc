#include "snapshotter/fuse/read_path.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <thread>

#include "core/base/log.h"
#include "snapshotter/fuse/test_views.h"

namespace kapsule::fuse {
namespace {

using control::FetchFailed;
using control::FetchHave;

// Reads of layers from a registry that nobody answers. What is sent goes nowhere:
// the device is not mounted.
class ReadPathTest : public ::testing::Test {
 protected:
  ReadPathTest() {
    spdlog::set_level(spdlog::level::err);  // each reply would be a warning
    EXPECT_TRUE(engine_->Start().ok());
  }
  ~ReadPathTest() override { spdlog::set_level(level_); }

  ViewPtr MakeView(const oci::Digest& digest) {
    auto source = fetch_.Open(
        digest, {std::make_shared<MemoryReader>(AsBytes(layer_.bytes)), {1, 1}}, layer_.header);
    auto reader = blob::LayerReader::Open(std::move(source).value(), layer_.ref, std::nullopt);
    return std::make_shared<const ServedView>(
        digest, view::Image::Make(layer_.toc, layer_.header.tar_length, false).value(),
        std::move(reader).value());
  }
  void Read(const ViewPtr& view, uint64_t offset) {
    Session::PendingRead read{};
    read.header.unique = ++last_unique_;
    read.in.offset = view->metadata_size() + offset;
    read.in.size = kPage;
    read.view = view;
    read.length = kPage;
    reads_.Serve(read, memory_->slot(0), scratch_, Reply(reply_.bytes()), true);
  }
  size_t Waiting() const { return memory_->ParkedReads().size(); }
  bool NobodyWaitsSoon() const {
    for (int i = 0; i < 5000 && Waiting() > 0; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    return Waiting() == 0;
  }

  const spdlog::level::level_enum level_ = spdlog::get_level();
  const blob::TestLayer layer_ =
      blob::BuildTestLayer({blob::MakeTestFile("weights", blob::TestBytes(4 << 20, 1))}, false);
  const oci::Digest one_ = testing::DigestStarting("01"), two_ = testing::DigestStarting("02");
  FetchClient fetch_{{}};
  const std::unique_ptr<RequestMemory> memory_ = testing::MakeMemory();
  const std::unique_ptr<FuseDevice> device_ =
      FuseDevice::Open(OpenFile("/dev/fuse", O_RDWR).value(), [] {}).value();
  const std::unique_ptr<ReadEngine> engine_ =
      ReadEngine::Make({.read_ahead_bytes = 8 << 20, .chunk_cache_bytes = 2 << 20}).value();
  ReadPath reads_{*engine_, *memory_, *device_, fetch_};
  ReadScratch scratch_;
  LockedBuffer reply_ = LockedBuffer::Make(Reply::kBufferSize).value();
  uint64_t last_unique_ = 0;
};

TEST_F(ReadPathTest, OneLayerLeavesOthersRoomToWait) {
  const ViewPtr one = MakeView(one_), two = MakeView(two_);
  for (uint32_t i = 0; i < ServedView::kMaxFarReads + 10; ++i) Read(one, i % 1000 * kPage);
  EXPECT_EQ(Waiting(), ServedView::kMaxFarReads) << "further ones fail";
  Read(two, 0);
  EXPECT_EQ(Waiting(), ServedView::kMaxFarReads + 1);
  fetch_.Find(one_)->FailWaiting(Unavailable("nobody"));
  EXPECT_EQ(Waiting(), 1u);
  Read(one, 0);
  EXPECT_EQ(Waiting(), 2u) << "there is room again";
  for (const oci::Digest& digest : {one_, two_})
    fetch_.Find(digest)->FailWaiting(Unavailable("nobody"));
}

TEST_F(ReadPathTest, WhatHasComeIsReadAndWhatIsThereDoesNotWait) {
  const ViewPtr view = MakeView(one_);
  for (uint64_t i = 0; i < 100; ++i) Read(view, i * kPage);
  EXPECT_EQ(Waiting(), 100u);
  FetchHave have{0, {}, {1, 1}};
  have.blocks.set(0);
  fetch_.Find(one_)->Handle({one_, have});
  EXPECT_TRUE(NobodyWaitsSoon());
  Read(view, 7 * kPage);
  EXPECT_EQ(Waiting(), 0u);
  Read(view, layer_.header.block_size - kPage / 2);
  EXPECT_EQ(Waiting(), 1u) << "half of it is of the next block";
  fetch_.Find(one_)->Handle({one_, FetchFailed{1, 1, Unavailable("registry away")}});
  EXPECT_EQ(Waiting(), 0u);
}

}  // namespace
}  // namespace kapsule::fuse
