// A client without labels, which unpacks layer by layer: Prepare, Apply, Commit.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>

#include "core/oci/manifest.h"
#include "plugin/differ/diff_service.h"
#include "snapshotter/snapshots_service.h"
#include "snapshotter/test_support.h"

namespace kapsule::snapshotter {
namespace {

namespace diff = containerd::services::diff::v1;
namespace snapshots = containerd::services::snapshots::v1;
using testing::ElementsAre;
using testing::IsEmpty;

const oci::Digest kPlain = oci::Digest::Of(AsBytes("plain tar"));
const oci::Digest kSecret = oci::Digest::Of(AsBytes("secret tar"));
const oci::Digest kCiphertext = oci::Digest::Of(AsBytes("ciphertext"));
const std::vector<oci::Digest> kChain = oci::ChainIds({kPlain, kSecret});

class RecordingBackend final : public LayerBackend {
 public:
  absl::Status PreRegister(const std::string&, const oci::Digest&) override {
    return absl::OkStatus();
  }
  void Add(const ModelLayer& layer) override {
    events.push_back(fmt::format("add {} {} {}", layer.ns, layer.depth, layer.chain_id.text()));
  }
  absl::Status Await(const SnapshotKey&, const std::vector<ModelLayer>&, absl::Time) override {
    return absl::OkStatus();
  }
  void Remove(const ModelLayer& layer) override {
    events.push_back(fmt::format("remove {}", layer.depth));
  }
  std::vector<std::string> events;
};

class UnpackTest : public testing::Test {
 protected:
  void SetUp() override { Start(); }
  void Start() {
    server_.reset();
    snapshotter_ = *Snapshotter::Open(root_.path(), *MetadataStore::Open(root_ / "metadata.db"),
                                      backend_, absl::Seconds(1));
    snapshots_service_.emplace(*snapshotter_);
    diff_service_.emplace(differ::SnapshotCalls{
        .claim =
            [this](const std::string& directory, const oci::LayerLabel& label) {
              return snapshotter_->ClaimLayer(directory, label);
            },
        .any_encrypted =
            [this](const std::vector<std::string>& directories) {
              return snapshotter_->AnyEncrypted(directories);
            }});
    grpc::ServerBuilder builder;
    builder.RegisterService(&*snapshots_service_);
    builder.RegisterService(&*diff_service_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    const auto channel = server_->InProcessChannel({});
    snapshots_ = snapshots::Snapshots::NewStub(channel);
    diff_ = diff::Diff::NewStub(channel);
  }

  static std::string Key(size_t layer, const oci::Digest& chain) {
    return fmt::format("default/{}/extract-12-ab_- {}", 2 * layer + 1, chain.text());
  }
  static std::string Name(size_t layer) {
    return fmt::format("default/{}/{}", 2 * layer + 2, kChain[layer].text());
  }
  snapshots::PrepareSnapshotResponse Prepare(const std::string& key, const std::string& parent) {
    grpc::ClientContext context;
    snapshots::PrepareSnapshotRequest request;
    request.set_key(key);
    request.set_parent(parent);
    snapshots::PrepareSnapshotResponse response;
    const grpc::Status status = snapshots_->Prepare(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  static containerd::types::Descriptor Layer(size_t layer) {
    const oci::LayerLabel label = layer == 0 ? oci::LayerLabel{kPlain, 9, kPlain, "model"}
                                             : oci::LayerLabel{kCiphertext, 10, kSecret, "model"};
    containerd::types::Descriptor proto;
    proto.set_media_type(layer == 0 ? oci::kLayerTarType : oci::kLayerTarEncryptedType);
    proto.set_digest(label.digest.text());
    proto.set_size(static_cast<int64_t>(label.size));
    (*proto.mutable_annotations())[oci::kLayerLabel] = label.ToJson().value();
    return proto;
  }
  grpc::Status Apply(const containerd::types::Descriptor& layer,
                     const snapshots::PrepareSnapshotResponse& prepared) {
    grpc::ClientContext context;
    diff::ApplyRequest request;
    *request.mutable_diff() = layer;
    *request.mutable_mounts() = prepared.mounts();
    diff::ApplyResponse response;
    const grpc::Status status = diff_->Apply(&context, request, &response);
    applied_ = response.applied().digest();
    return status;
  }
  grpc::Status Commit(const std::string& name, const std::string& key) {
    grpc::ClientContext context;
    snapshots::CommitSnapshotRequest request;
    request.set_name(name);
    request.set_key(key);
    google::protobuf::Empty response;
    return snapshots_->Commit(&context, request, &response);
  }
  grpc::Status Diff(const Mount& left, const Mount& right) {
    grpc::ClientContext context;
    diff::DiffRequest request;
    const auto add = [](const Mount& mount, containerd::types::Mount* proto) {
      proto->set_type(mount.type);
      proto->set_source(mount.source);
      for (const std::string& option : mount.options) proto->add_options(option);
    };
    add(left, request.add_left());
    add(right, request.add_right());
    diff::DiffResponse response;
    return diff_->Diff(&context, request, &response);
  }
  // Unpacks layer `layer` as containerd does.
  void Unpack(size_t layer) {
    const std::string key = Key(layer, kChain[layer]);
    const auto prepared = Prepare(key, layer == 0 ? "" : Name(layer - 1));
    const grpc::Status status = Apply(Layer(layer), prepared);
    ASSERT_TRUE(status.ok()) << status.error_message();
    ASSERT_TRUE(Commit(Name(layer), key).ok());
  }

  TempDir root_;
  RecordingBackend backend_;
  std::unique_ptr<Snapshotter> snapshotter_;
  std::optional<SnapshotsService> snapshots_service_;
  std::optional<differ::DiffService> diff_service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<snapshots::Snapshots::Stub> snapshots_;
  std::unique_ptr<diff::Diff::Stub> diff_;
  std::string applied_;
};

TEST_F(UnpackTest, CommittedLayersAreKapsulesAndNothingIsWritten) {
  Unpack(0);
  EXPECT_EQ(applied_, kPlain.text());
  Unpack(1);
  EXPECT_EQ(applied_, kSecret.text());
  EXPECT_THAT(backend_.events, ElementsAre("add default 0 " + kChain[0].text(),
                                           "add default 1 " + kChain[1].text()));
  EXPECT_EQ(snapshotter_->Stat(Name(1))->kind, Kind::kCommitted);
  EXPECT_EQ(snapshotter_->Stat(Name(1))->parent, Name(0));
  EXPECT_EQ(*snapshotter_->GetUsage(Name(1)), Usage{});
  for (const char* id : {"1", "2"}) EXPECT_THAT(NamesOf(root_ / "l" / id / "fs"), IsEmpty());
}

TEST_F(UnpackTest, AClaimOutlivesTheSnapshotter) {
  const std::string key = Key(0, kChain[0]);
  ASSERT_TRUE(Apply(Layer(0), Prepare(key, "")).ok());
  Start();
  // Not opened before it is committed.
  EXPECT_THAT(*MetadataStore::Open(root_ / "metadata.db").value()->ListLayers(), IsEmpty());
  ASSERT_TRUE(Commit(Name(0), key).ok());
  EXPECT_THAT(backend_.events, ElementsAre("add default 0 " + kChain[0].text()));
  EXPECT_EQ(MetadataStore::Open(root_ / "metadata.db").value()->ListLayers()->size(), 1u);
}

TEST_F(UnpackTest, AClaimThatIsNotCommittedLeavesNothing) {
  const std::string key = Key(0, kChain[0]);
  ASSERT_TRUE(Apply(Layer(0), Prepare(key, "")).ok());
  ASSERT_TRUE(snapshotter_->Remove(key).ok());
  EXPECT_THAT(backend_.events, IsEmpty());
  snapshotter_->Cleanup();
  EXPECT_THAT(NamesOf(root_ / "l"), IsEmpty());
}

TEST_F(UnpackTest, ALayerIsNotClaimedForAnotherChain) {
  Unpack(0);
  backend_.events.clear();
  // The key names what the config says: neither this layer here, nor on that parent.
  const std::string key = Key(1, kChain[0]);
  const auto prepared = Prepare(key, Name(0));
  EXPECT_EQ(Apply(Layer(1), prepared).error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(Apply(Layer(0), prepared).error_code(), grpc::StatusCode::UNIMPLEMENTED);
  ASSERT_TRUE(Commit("default/9/x", key).ok());
  EXPECT_THAT(backend_.events, IsEmpty());
  // A container's key names nothing, nor does a parent of no chain.
  EXPECT_EQ(Apply(Layer(0), Prepare("default/5/container", "")).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(Apply(Layer(1), Prepare(Key(2, kChain[1]), "default/9/x")).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(UnpackTest, OnlyDirectoriesOfOursAreClaimed) {
  const auto prepared = Prepare(Key(0, kChain[0]), "");
  const std::string ours = prepared.mounts(0).source();
  for (const std::string& path :
       {ours + "/", ours + "/sub", ours.substr(0, ours.size() - 3), "/." + ours,
        (root_ / "l/99/fs").string(), (root_ / "l/01/fs").string(), (root_ / "l//fs").string(),
        (root_ / "l/99999999999999999999/fs").string(), std::string("/elsewhere/l/1/fs"),
        std::string()}) {
    snapshots::PrepareSnapshotResponse other = prepared;
    other.mutable_mounts(0)->set_source(path);
    EXPECT_EQ(Apply(Layer(0), other).error_code(), grpc::StatusCode::UNIMPLEMENTED) << path;
  }
  EXPECT_TRUE(Apply(Layer(0), prepared).ok());
}

TEST_F(UnpackTest, ACommittedSnapshotIsNotClaimed) {
  const std::string key = Key(0, kChain[0]);
  const auto prepared = Prepare(key, "");
  ASSERT_TRUE(Commit(Key(5, kChain[0]), key).ok());  // a name that is one of a key, too
  EXPECT_EQ(Apply(Layer(0), prepared).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(UnpackTest, NoDiffIsMadeOverEncryptedLayers) {
  Unpack(0);
  const Mount plain = snapshotter_->View("default/7/plain", Name(0), {})->front();
  const Mount above_plain = snapshotter_->Prepare("default/7/a", Name(0), {})->front();
  EXPECT_EQ(Diff(plain, above_plain).error_code(), grpc::StatusCode::UNIMPLEMENTED);
  Unpack(1);
  const Mount secret = snapshotter_->View("default/8/secret", Name(1), {})->front();
  const Mount above = snapshotter_->Prepare("default/8/a", Name(1), {})->front();
  EXPECT_EQ(Diff(secret, above).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Diff(plain, secret).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

}  // namespace
}  // namespace kapsule::snapshotter
