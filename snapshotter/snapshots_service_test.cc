#include "snapshotter/snapshots_service.h"

#include <absl/synchronization/mutex.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>

#include "snapshotter/test_support.h"

namespace kapsule::snapshotter {
namespace {

namespace api = containerd::services::snapshots::v1;
using testing::ElementsAre;

class NoLayers final : public LayerBackend {
 public:
  absl::Status PreRegister(const std::string&, const oci::Digest&) override { return Answer(); }
  void Add(const ModelLayer&) override {}
  absl::Status Await(const SnapshotKey&, const std::vector<ModelLayer>&, absl::Time) override {
    return Answer();
  }
  void Remove(const ModelLayer&) override {}
  void SetAnswer(const absl::Status& answer) {
    const absl::MutexLock lock(&mu_);
    answer_ = answer;
  }

 private:
  absl::Status Answer() const {
    const absl::MutexLock lock(&mu_);
    return answer_;
  }
  mutable absl::Mutex mu_;
  absl::Status answer_ ABSL_GUARDED_BY(mu_);
};

class SnapshotsServiceTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string address = "unix:" + (root_ / "socket").string();
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    stub_ =
        api::Snapshots::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  }
  grpc::Status Prepare(const std::string& key, const std::string& parent = "",
                       const Labels& labels = {}) {
    grpc::ClientContext context;
    api::PrepareSnapshotRequest request;
    request.set_key(key);
    request.set_parent(parent);
    for (const auto& [name, value] : labels) (*request.mutable_labels())[name] = value;
    return stub_->Prepare(&context, request, &prepared_);
  }
  // The sizes of the messages that List answers with.
  std::vector<int> ListSizes(const std::string& filter) {
    grpc::ClientContext context;
    api::ListSnapshotsRequest request;
    request.add_filters(filter);
    const auto reader = stub_->List(&context, request);
    std::vector<int> sizes;
    for (api::ListSnapshotsResponse batch; reader->Read(&batch);)
      sizes.push_back(batch.info_size());
    list_status_ = reader->Finish();
    return sizes;
  }

  TempDir root_;
  NoLayers backend_;
  std::unique_ptr<Snapshotter> snapshotter_ = *Snapshotter::Open(
      root_.path(), *MetadataStore::Open(root_ / "metadata.db"), backend_, absl::Seconds(1));
  SnapshotsService service_{*snapshotter_};
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<api::Snapshots::Stub> stub_;
  api::PrepareSnapshotResponse prepared_;
  grpc::Status list_status_;
};

TEST_F(SnapshotsServiceTest, AnswersMountsWithoutTarget) {
  ASSERT_TRUE(Prepare("key").ok());
  ASSERT_EQ(prepared_.mounts_size(), 1);
  EXPECT_EQ(prepared_.mounts(0).type(), "bind");
  EXPECT_EQ(prepared_.mounts(0).target(), "");
  EXPECT_THAT(prepared_.mounts(0).options(), ElementsAre("rw", "rbind"));
}

TEST_F(SnapshotsServiceTest, TimesKeepTheirNanoseconds) {
  ASSERT_TRUE(Prepare("key", "", {{"a.b/c", "d"}}).ok());
  grpc::ClientContext context;
  api::StatSnapshotRequest request;
  api::StatSnapshotResponse response;
  request.set_key("key");
  ASSERT_TRUE(stub_->Stat(&context, request, &response).ok());
  const Info info = *snapshotter_->Stat("key");
  const auto& created = response.info().created_at();
  EXPECT_EQ(created.seconds() * 1'000'000'000 + created.nanos(), info.created_ns);
  EXPECT_EQ(response.info().kind(), api::ACTIVE);
  EXPECT_EQ(response.info().labels().at("a.b/c"), "d");
}

TEST_F(SnapshotsServiceTest, ListsInMessagesOfAHundred) {
  EXPECT_THAT(ListSizes(""), ElementsAre());
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(Prepare("k" + std::to_string(i)).ok());
  EXPECT_THAT(ListSizes("kind==active"), ElementsAre(100));
  ASSERT_TRUE(Prepare("k100").ok());
  EXPECT_THAT(ListSizes(""), ElementsAre(100, 1));
  EXPECT_THAT(ListSizes("name==k7"), ElementsAre(1));
  EXPECT_TRUE(list_status_.ok());
  ListSizes("name=");
  EXPECT_EQ(list_status_.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(SnapshotsServiceTest, AMaskKeepsDotsAndSlashesOfALabel) {
  ASSERT_TRUE(Prepare("key", "", {{"a.b/c", "d"}, {"e", "f"}}).ok());
  grpc::ClientContext context;
  api::UpdateSnapshotRequest request;
  api::UpdateSnapshotResponse response;
  request.mutable_info()->set_name("key");
  (*request.mutable_info()->mutable_labels())["a.b/c"] = "new";
  request.mutable_update_mask()->add_paths("labels.a.b/c");
  ASSERT_TRUE(stub_->Update(&context, request, &response).ok());
  EXPECT_EQ(response.info().labels().at("a.b/c"), "new");
  EXPECT_EQ(response.info().labels().at("e"), "f");
}

TEST_F(SnapshotsServiceTest, ErrorsKeepCodeAndMessage) {
  ASSERT_TRUE(Prepare("key").ok());
  const grpc::Status status = Prepare("key");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(status.error_message(), "snapshot key already exists");

  const oci::Digest chain = oci::Digest::Of({});
  const oci::LayerLabel label{chain, 1, chain, "model"};
  EXPECT_EQ(Prepare("default/1/x", "",
                    {{kSnapshotRefLabel, chain.text()}, {oci::kLayerLabel, *label.ToJson()}})
                .error_code(),
            grpc::StatusCode::ALREADY_EXISTS);
  for (const absl::Status& answer :
       {PermissionDenied("no key"), Unavailable("down"), DataLoss("bad")}) {
    backend_.SetAnswer(answer);
    const grpc::Status refused = Prepare("default/2/c", chain.text());
    EXPECT_EQ(refused.error_code(), static_cast<grpc::StatusCode>(answer.code()));
    EXPECT_EQ(refused.error_message(), Message(answer));
  }
}

}  // namespace
}  // namespace kapsule::snapshotter
