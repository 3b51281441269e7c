#include "plugin/differ/diff_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>

#include "core/oci/manifest.h"

namespace kapsule::differ {
namespace {

namespace api = containerd::services::diff::v1;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const oci::Digest kBlob = oci::Digest::Of(AsBytes("blob"));
const oci::Digest kTar = oci::Digest::Of(AsBytes("tar"));

// The service behind gRPC; what it asks of the snapshotter is written down.
class DiffServiceTest : public testing::Test {
 protected:
  void SetUp() override {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    stub_ = api::Diff::NewStub(server_->InProcessChannel({}));
  }

  static api::ApplyRequest Request(const char* media_type, const oci::LayerLabel& label) {
    api::ApplyRequest request;
    request.mutable_diff()->set_media_type(media_type);
    request.mutable_diff()->set_digest(kBlob.text());
    request.mutable_diff()->set_size(4);
    (*request.mutable_diff()->mutable_annotations())[oci::kLayerLabel] = label.ToJson().value();
    AddMount(request.add_mounts(), "bind", "/ours/l/1/fs", {"rw", "rbind"});
    return request;
  }
  static void AddMount(containerd::types::Mount* mount, const std::string& type,
                       const std::string& source, const std::vector<std::string>& options) {
    mount->set_type(type);
    mount->set_source(source);
    for (const std::string& option : options) mount->add_options(option);
  }
  grpc::Status Apply(const api::ApplyRequest& request) {
    grpc::ClientContext context;
    applied_.Clear();
    return stub_->Apply(&context, request, &applied_);
  }
  grpc::Status Diff(const api::DiffRequest& request) {
    grpc::ClientContext context;
    api::DiffResponse response;
    return stub_->Diff(&context, request, &response);
  }

  absl::Status claim_answer_;
  absl::StatusOr<bool> encrypted_ = false;
  std::vector<std::string> claimed_, asked_;
  DiffService service_{{.claim =
                            [this](const std::string& directory, const oci::LayerLabel&) {
                              claimed_.push_back(directory);
                              return claim_answer_;
                            },
                        .any_encrypted =
                            [this](const std::vector<std::string>& directories) {
                              asked_ = directories;
                              return encrypted_;
                            }}};
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<api::Diff::Stub> stub_;
  api::ApplyResponse applied_;
};

TEST_F(DiffServiceTest, AnswersWithTheTarOfAnEncryptedLayer) {
  const grpc::Status status =
      Apply(Request(oci::kLayerTarEncryptedType, {kBlob, 4, kTar, "model"}));
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(applied_.applied().digest(), kTar.text());
  EXPECT_EQ(applied_.applied().size(), 4);
  EXPECT_EQ(applied_.applied().media_type(), oci::kLayerTarType);
  EXPECT_THAT(claimed_, ElementsAre("/ours/l/1/fs"));
}

TEST_F(DiffServiceTest, ClaimsWhereAnOverlayIsWritten) {
  api::ApplyRequest request = Request(oci::kLayerTarType, {kBlob, 4, kBlob, "model"});
  request.clear_mounts();
  AddMount(request.add_mounts(), "overlay", "overlay",
           {"workdir=/ours/l/2/work", "upperdir=/ours/l/2/fs", "lowerdir=/ours/l/1/fs"});
  EXPECT_TRUE(Apply(request).ok());
  EXPECT_THAT(claimed_, ElementsAre("/ours/l/2/fs"));
}

TEST_F(DiffServiceTest, LeavesToOthersWhatIsNoKapsuleLayer) {
  std::vector<api::ApplyRequest> requests;
  requests.push_back(Request(oci::kLayerTarType, {kBlob, 4, kBlob, "model"}));
  requests.back().mutable_diff()->clear_annotations();
  // Bytes that would stand for somebody else's tar.
  requests.push_back(Request(oci::kLayerTarType, {kBlob, 4, kTar, "model"}));
  requests.push_back(Request(oci::kLayerTarEncryptedType, {kTar, 4, kTar, "model"}));
  for (const char* digest : {"", "sha256:1", "sha512:00"}) {
    requests.push_back(Request(oci::kLayerTarEncryptedType, {kBlob, 4, kTar, "model"}));
    requests.back().mutable_diff()->set_digest(digest);
  }
  requests.push_back(Request(oci::kLayerTarEncryptedType, {kBlob, 4, kTar, "model"}));
  requests.back().mutable_diff()->set_size(-4);
  requests.push_back(Request(oci::kLayerTarEncryptedType, {kBlob, 4, kTar, "model"}));
  requests.back().clear_mounts();
  requests.push_back(Request(oci::kLayerTarEncryptedType, {kBlob, 4, kTar, "model"}));
  AddMount(requests.back().add_mounts(), "bind", "/more", {});
  requests.push_back(Request(oci::kLayerTarEncryptedType, {kBlob, 4, kTar, "model"}));
  requests.back().mutable_mounts(0)->set_type("overlay");  // without an upper directory
  requests.emplace_back();
  for (const api::ApplyRequest& request : requests)
    EXPECT_EQ(Apply(request).error_code(), grpc::StatusCode::UNIMPLEMENTED)
        << request.ShortDebugString();
  EXPECT_THAT(claimed_, IsEmpty());
}

TEST_F(DiffServiceTest, LeavesToOthersWhatTheSnapshotterDoesNotKnow) {
  const api::ApplyRequest request = Request(oci::kLayerTarEncryptedType, {kBlob, 4, kTar, "model"});
  claim_answer_ = NotFound("not of ours");
  EXPECT_EQ(Apply(request).error_code(), grpc::StatusCode::UNIMPLEMENTED);
  claim_answer_ = InvalidArgument("another chain");
  EXPECT_EQ(Apply(request).error_code(), grpc::StatusCode::UNIMPLEMENTED);
  claim_answer_ = ResourceExhausted("the disk is full");
  const grpc::Status failed = Apply(request);
  EXPECT_EQ(failed.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(failed.error_message(), HasSubstr("the disk is full"));
}

TEST_F(DiffServiceTest, RefusesADiffAboveEncryptedLayersOnly) {
  api::DiffRequest request;
  AddMount(request.add_left(), "bind", "/ours/l/1/fs", {"ro", "rbind"});
  AddMount(request.add_right(), "overlay", "overlay",
           {"upperdir=/ours/l/3/fs", "lowerdir=/ours/l/2/fs:/ours/l/1/fs"});
  EXPECT_EQ(Diff(request).error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(asked_, ElementsAre("/ours/l/1/fs", "overlay", "/ours/l/2/fs", "/ours/l/1/fs"));
  encrypted_ = true;
  EXPECT_EQ(Diff(request).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  encrypted_ = DataLoss("damaged");
  EXPECT_EQ(Diff(request).error_code(), grpc::StatusCode::DATA_LOSS);
}

}  // namespace
}  // namespace kapsule::differ
