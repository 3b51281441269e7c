// LayerOpener::Reopen() beside others who open the same layer.
#include <absl/time/clock.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/socket.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <optional>
#include <thread>

#include "core/base/unix_socket.h"
#include "core/control/control_wire.h"
#include "core/keyprovider/wire.h"
#include "snapshotter/fuse/layer_opener.h"
#include "snapshotter/fuse/layer_source.h"
#include "snapshotter/fuse/read_engine.h"
#include "snapshotter/fuse/test_views.h"

namespace kapsule::fuse {
namespace {

class LayerReopenTest : public ::testing::Test {
 protected:
  LayerReopenTest() { holes_.replace(0, layer_.header.tar_length, layer_.header.tar_length, '\0'); }
  ~LayerReopenTest() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }
  static std::filesystem::path MakeFolder() {
    std::string name = "/tmp/kapsule-reopen-XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    return name;
  }

  UniqueFd MakeFile(const std::string& name, const std::string& bytes) const {
    EXPECT_TRUE(WriteFileAtomic(folder_ / name, AsBytes(bytes), 0600).ok());
    return OpenFile(folder_ / name, O_RDONLY | O_CLOEXEC).value();
  }
  UniqueFd MakeRecord() const {
    const oci::Annotations annotations = {
        {std::string(oci::kIndexAnnotation), layer_.ref.ToJson()}};
    const control::LayerRecord record = {keyprovider::AnnotationsToJson(annotations), true};
    return SealedMemfd("record", AsBytes(control::RecordToJson(record))).value();
  }
  // Of the file with holes. While the keyprovider is asked for the key, `meanwhile` is done.
  absl::Status Reopen(const std::function<void()>& meanwhile) {
    const std::weak_ptr<const ServedView> weak(view_);
    std::thread keyprovider([&] {
      const UniqueFd connection(accept4(keys_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      EXPECT_TRUE(keyprovider::ReceiveRequest(connection.get()).ok());
      meanwhile();
      const auto unwrapped = [this] {
        return keyprovider::UnwrappedLayer{layer_.key.Clone(), layer_.ref};
      };
      EXPECT_TRUE(keyprovider::SendReply(connection.get(), unwrapped()).ok());
    });
    const absl::Status status =
        opener_.Reopen(weak, MakeFile("holes", holes_), MakeRecord(), absl::Now() + kPatience);
    keyprovider.join();
    return status;
  }
  // Another one opens the blob, in the file that kapsule-fetch has now.
  std::unique_ptr<ReaderAt> OpenFilled() {
    Blob file = AdoptBlob(MakeFile("filled", layer_.bytes)).value();
    filled_ = file.id;
    return fetch_.Open(digest_, {std::move(file.bytes), file.id, file.fd}, layer_.header).value();
  }
  void ExpectFilled(const ReaderAt& blob) const {
    control::FetchHave have{0, {}, filled_};
    have.blocks.set(0);
    fetch_.Find(digest_)->Handle({digest_, have});
    std::string bytes(4096, '\0');
    ASSERT_TRUE(blob.ReadAt(0, std::as_writable_bytes(std::span(bytes))).ok());
    EXPECT_TRUE(bytes == layer_.bytes.substr(0, bytes.size())) << "it reads holes";
  }

  static constexpr absl::Duration kPatience = absl::Seconds(30);
  const oci::Digest digest_ = testing::DigestStarting("ab");
  const blob::TestLayer layer_ =
      blob::BuildTestLayer({blob::MakeTestFile("weights", blob::TestBytes(100'000, 1))}, true);
  std::string holes_ = layer_.bytes;
  control::FetchFile filled_;
  const std::filesystem::path folder_ = MakeFolder();
  const UniqueFd keys_ = ListenUnix(folder_ / "keys", SOCK_SEQPACKET, 0600).value();
  const std::unique_ptr<RequestMemory> memory_ = testing::MakeMemory();
  const std::unique_ptr<ReadEngine> engine_ = ReadEngine::Make({}).value();
  const control::Holder holder_{UniqueFd()};
  ViewTable table_{*memory_};
  TaskPool chores_{10};
  HeldViews held_{holder_, table_, chores_};
  FetchClient fetch_{{}};
  LayerOpener opener_{table_, held_, fetch_, folder_ / "keys", engine_->shared()};
  ViewPtr view_ = std::make_shared<const ServedView>(
      digest_, view::Image::Make(layer_.toc, layer_.header.tar_length, true).value());
};

TEST_F(LayerReopenTest, AViewGetsItsLayer) {
  EXPECT_EQ(Reopen([] {}), absl::OkStatus());
  EXPECT_NE(view_->layer(), nullptr);
}

TEST_F(LayerReopenTest, OneThatAnotherReplacesMeanwhileLeavesTheBlobItsNewFile) {
  std::unique_ptr<ReaderAt> blob;
  EXPECT_EQ(Reopen([&] {
              view_.reset();
              blob = OpenFilled();
            }),
            absl::OkStatus());
  ExpectFilled(*blob);
}

TEST_F(LayerReopenTest, OneThatGetsItsLayerFromAnOpeningMeanwhileKeepsTheNewFile) {
  EXPECT_EQ(Reopen([&] {
              auto layer = blob::LayerReader::Open(OpenFilled(), layer_.ref, layer_.key.Clone());
              ASSERT_TRUE(layer.ok()) << layer.status();
              EXPECT_TRUE(view_->SetLayer(*std::move(layer)).ok());
            }),
            absl::OkStatus());
  ExpectFilled(view_->layer()->source());
}

TEST_F(LayerReopenTest, WhoChangesWhatIsHeldOfTheLayerIsWaitedFor) {
  std::optional<HeldViews::Claim> claim(std::in_place, held_, view_->name());
  std::atomic<bool> changed = false;
  std::thread other;
  EXPECT_EQ(Reopen([&] {
              other = std::thread([&] {
                absl::SleepFor(absl::Milliseconds(200));
                EXPECT_EQ(view_->layer(), nullptr);
                changed = true;
                claim.reset();
              });
            }),
            absl::OkStatus());
  EXPECT_TRUE(changed);
  other.join();
  EXPECT_NE(view_->layer(), nullptr);
}

TEST_F(LayerReopenTest, AFileThatIsGivenMeanwhileReachesTheBlobThatIsMade) {
  table_.Restore({});
  const ViewTable::Opening opening(table_, view_->name());
  ASSERT_TRUE(table_.Publish(opening, view_).ok());
  const UniqueFd filled = MakeFile("filled", layer_.bytes);
  filled_ = AdoptBlob(filled)->id;
  std::optional<HeldViews::Claim> claim(std::in_place, held_, view_->name());
  absl::Status given;
  std::thread giver([&] { given = opener_.UseFile(digest_, filled); });
  absl::SleepFor(absl::Milliseconds(200));  // it waits for the claim
  Blob holes = AdoptBlob(MakeFile("holes", holes_)).value();
  const auto blob =
      fetch_.Open(digest_, {std::move(holes.bytes), holes.id, holes.fd}, layer_.header).value();
  claim.reset();
  giver.join();
  EXPECT_TRUE(absl::IsUnavailable(given)) << "it has no key yet";
  ExpectFilled(*blob);
}

}  // namespace
}  // namespace kapsule::fuse
