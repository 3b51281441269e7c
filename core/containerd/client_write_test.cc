#include <gtest/gtest.h>

#include "core/containerd/client.h"
#include "core/containerd/testing.h"

namespace kapsule::containerd {
namespace {

constexpr char kLease[] = "tests";
constexpr char kSnapshotter[] = "overlayfs";

absl::Time Soon() { return absl::Now() + absl::Seconds(30); }

oci::Descriptor Blob(const std::string& bytes) {
  return {oci::kLayerTarType, oci::Digest::Of(AsBytes(bytes)), bytes.size(), {}, "", ""};
}

class ClientWriteTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto started = TestContainerd::Start();
    ASSERT_TRUE(started.ok()) << started.status();
    containerd_ = started->release();
  }
  static void TearDownTestSuite() {
    delete containerd_;
    containerd_ = nullptr;
  }
  // containerd collects what has no lease soon after each deletion of one.
  void SetUp() override {
    for (const char* ns : {"default", "other"})
      ASSERT_TRUE(client_.CreateLease(ns, kLease, absl::Hours(1), Soon()).ok());
  }
  void TearDown() override {
    for (const char* ns : {"default", "other"})
      EXPECT_TRUE(client_.DeleteLease(ns, kLease, Soon()).ok());
  }

  // Hands `bytes` out in small pieces; how often it was asked is counted.
  BlobReader ReaderOf(const std::string& bytes) {
    return [this, bytes](const auto& sink) -> absl::Status {
      ++reads_;
      constexpr size_t kPiece = 70'000;
      for (size_t at = 0; at < bytes.size(); at += kPiece)
        RETURN_IF_ERROR(sink(AsBytes(std::string_view(bytes).substr(at, kPiece))));
      return absl::OkStatus();
    };
  }
  absl::Status Write(const std::string& bytes, const std::string& ns = "default") {
    return client_.WriteBlob(ns, Blob(bytes), ReaderOf(bytes), kLease, Soon());
  }
  std::string ReadBack(const std::string& bytes, const std::string& ns = "default") {
    return client_.ReadBlob(ns, Blob(bytes).digest, bytes.size(), Soon()).value_or("none");
  }

  Client client_{containerd_->socket()};
  int reads_ = 0;
  static TestContainerd* containerd_;
};

TestContainerd* ClientWriteTest::containerd_ = nullptr;

TEST_F(ClientWriteTest, WritesABlobOfAnySize) {
  for (const size_t size : {1u, 1u << 20, (3u << 20) + 7}) {
    const std::string bytes(size, 'x');
    ASSERT_EQ(Write(bytes), absl::OkStatus());
    EXPECT_EQ(ReadBack(bytes), bytes);
  }
}

TEST_F(ClientWriteTest, DoesNotReadWhatIsThere) {
  const std::string bytes = "is there";
  ASSERT_EQ(Write(bytes), absl::OkStatus());
  ASSERT_EQ(Write(bytes), absl::OkStatus());
  ASSERT_EQ(Write(bytes, "other"), absl::OkStatus());
  EXPECT_EQ(reads_, 1);
  EXPECT_EQ(ReadBack(bytes, "other"), bytes);
}

TEST_F(ClientWriteTest, AWriteThatWasCutOffBeginsAnew) {
  const std::string bytes(5 << 20, 'y');
  const absl::Status cut = client_.WriteBlob(
      "default", Blob(bytes),
      [&](const auto& sink) -> absl::Status {
        RETURN_IF_ERROR(sink(AsBytes(std::string_view(bytes).substr(0, 3 << 20))));
        return Cancelled("by the user");
      },
      kLease, Soon());
  EXPECT_TRUE(absl::IsCancelled(cut)) << cut;
  absl::Status again;
  do {  // containerd may not have seen yet that the first one has gone
    again = Write(bytes);
  } while (absl::IsUnavailable(again));
  EXPECT_EQ(again, absl::OkStatus());
  EXPECT_EQ(ReadBack(bytes), bytes);
}

TEST_F(ClientWriteTest, RefusesOtherBytes) {
  for (const std::string bytes : {"other bytes", "short", "longer than those"}) {
    const absl::Status status =
        client_.WriteBlob("default", Blob("these bytes"), ReaderOf(bytes), kLease, Soon());
    EXPECT_TRUE(absl::IsFailedPrecondition(status) || absl::IsUnavailable(status)) << status;
  }
  EXPECT_EQ(ReadBack("these bytes"), "none");
}

TEST_F(ClientWriteTest, AnImageIsMadeAndMoved) {
  const std::string name = "registry.test/acme/moved:1";
  const auto digest = [&] { return client_.GetImage("default", name, Soon())->target.digest; };
  ASSERT_EQ(client_.PutImage("default", {name, Blob("a")}, Soon()), absl::OkStatus());
  EXPECT_EQ(digest(), Blob("a").digest);
  ASSERT_TRUE(containerd_->Ctr({"images", "label", name, "kept=yes"}).ok());
  ASSERT_EQ(client_.PutImage("default", {name, Blob("b")}, Soon()), absl::OkStatus());
  EXPECT_EQ(digest(), Blob("b").digest);
  EXPECT_TRUE(containerd_->Ctr({"images", "rm", name}).ok());
}

TEST_F(ClientWriteTest, UnpacksALayerAndCommitsIt) {
  const std::string tar = OneFileTar("file", "content");
  ASSERT_EQ(Write(tar), absl::OkStatus());
  const std::string name = Blob(tar).digest.text();
  EXPECT_TRUE(
      absl::IsNotFound(client_.GetSnapshotLabels("default", kSnapshotter, name, Soon()).status()));
  for (const char* key : {"first", "second"}) {
    const auto unpacked =
        client_.Unpack("default", kSnapshotter, key, "", {}, Blob(tar), kLease, Soon());
    ASSERT_TRUE(unpacked.ok()) << unpacked.status();
    EXPECT_EQ(*unpacked, Blob(tar).digest);
    const absl::Status committed = client_.CommitSnapshot(
        "default", kSnapshotter, name, key, {{"containerd.io/snapshot/a", "b"}}, kLease, Soon());
    if (std::string(key) == "first") {
      EXPECT_EQ(committed, absl::OkStatus());
    } else {
      EXPECT_TRUE(absl::IsAlreadyExists(committed)) << committed;
      EXPECT_TRUE(client_.RemoveSnapshot("default", kSnapshotter, key, Soon()).ok());
    }
  }
  EXPECT_EQ(client_.GetSnapshotLabels("default", kSnapshotter, name, Soon())
                ->at("containerd.io/snapshot/a"),
            "b");
}

TEST_F(ClientWriteTest, ErrorsSayWhichCallFailed) {
  const absl::Status missing =
      client_.Unpack("default", kSnapshotter, "missing", "", {}, Blob("not there"), kLease, Soon())
          .status();
  EXPECT_TRUE(absl::IsNotFound(missing)) << missing;
  EXPECT_NE(Message(missing).find("unpack layer " + Blob("not there").digest.text()),
            std::string::npos);
  EXPECT_TRUE(
      absl::IsInvalidArgument(client_.GetSnapshotLabels("default", "none", "x", Soon()).status()));
  EXPECT_TRUE(
      absl::IsAlreadyExists(client_.CreateLease("default", kLease, absl::Hours(1), Soon())));
}

}  // namespace
}  // namespace kapsule::containerd
