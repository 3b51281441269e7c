#include "snapshotter/blob_open_request.h"

#include <absl/time/clock.h>
#include <gtest/gtest.h>

#include "core/control/control_wire.h"

namespace kapsule::snapshotter {
namespace {

RemoteBlob BlobOf(int images) {
  RemoteBlob blob;
  blob.digest = oci::Digest::Of(AsBytes("blob"));
  blob.size = 1000;
  for (int i = 0; i < images; ++i) blob.images.push_back(fmt::format("r{}.example/a", i));
  return blob;
}

PullCredentials TokenOf(const std::string& host, size_t bytes, char letter = 'x') {
  return {.place = host, .registry_token = Secret::CopyOf(std::string(bytes, letter))};
}

// Whether it goes through the socket.
bool IsTaken(v1::FetchRequest request) {
  control::SocketPair pair = control::MakeSocketPair().value();
  request.set_id(~uint64_t{0});
  const absl::Status sent = control::SendFetchRequest(pair.ours.get(), request, {});
  EXPECT_TRUE(sent.ok()) << sent;
  return sent.ok() && control::ReceiveFetchRequest(pair.theirs.get()).ok();
}

absl::Time Soon() { return absl::Now() + absl::Seconds(60); }

TEST(BlobOpenRequestTest, ItNamesImagesAndWhomTheyWerePulledAs) {
  const v1::FetchRequest request = BlobOpenRequest(
      BlobOf(2),
      [](const std::string& image) -> std::optional<PullCredentials> {
        if (image.starts_with("r0")) return std::nullopt;
        return TokenOf("r1.example", 10);
      },
      Soon());
  ASSERT_EQ(request.open().sources_size(), 2);
  EXPECT_EQ(request.open().sources(1), "r1.example/a");
  ASSERT_EQ(request.open().credentials_size(), 1);
  EXPECT_EQ(request.open().credentials(0).place(), "r1.example");
  EXPECT_GT(request.open().timeout_ms(), 30'000u);
  EXPECT_TRUE(IsTaken(request));
}

TEST(BlobOpenRequestTest, LongTokensOfManyImagesFitAMessage) {
  const v1::FetchRequest request = BlobOpenRequest(
      BlobOf(control::kMaxFetchSources),
      [](const std::string& image) { return TokenOf(image.substr(0, image.find('/')), 16 << 10); },
      Soon());
  EXPECT_EQ(request.open().sources_size(), 3) << "as many as have room";
  EXPECT_EQ(request.open().credentials_size(), 3);
  EXPECT_TRUE(IsTaken(request));
}

TEST(BlobOpenRequestTest, AnImageAfterOneThatHasNoRoomIsNamed) {
  const v1::FetchRequest request = BlobOpenRequest(
      BlobOf(3),
      [](const std::string& image) {
        return TokenOf(image.substr(0, image.find('/')), image.starts_with("r1") ? 65 << 10 : 10);
      },
      Soon());
  ASSERT_EQ(request.open().sources_size(), 2);
  EXPECT_EQ(request.open().sources(1), "r2.example/a");
  EXPECT_TRUE(IsTaken(request));
}

TEST(BlobOpenRequestTest, TheSameCredentialsAreToldOnce) {
  const v1::FetchRequest request = BlobOpenRequest(
      BlobOf(control::kMaxFetchSources),
      [](const std::string&) { return TokenOf("r.example", 16 << 10); }, Soon());
  EXPECT_EQ(request.open().sources_size(), control::kMaxFetchSources);
  EXPECT_EQ(request.open().credentials_size(), 1);
  EXPECT_TRUE(IsTaken(request));
}

TEST(BlobOpenRequestTest, MoreImagesThanAMessageMayNameAreLeftOut) {
  const v1::FetchRequest request = BlobOpenRequest(
      BlobOf(control::kMaxFetchSources + 5),
      [](const std::string&) { return std::optional<PullCredentials>(); }, Soon());
  EXPECT_EQ(request.open().sources_size(), control::kMaxFetchSources);
  EXPECT_TRUE(IsTaken(request));
}

}  // namespace
}  // namespace kapsule::snapshotter
