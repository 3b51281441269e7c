#include "core/image/builder.h"

#include <array>
#include <optional>
#include <utility>

#include "core/base/secret.h"
#include "core/image/base_image.h"
#include "core/image/image_config.h"
#include "core/image/layer_content.h"
#include "core/image/layer_descriptor.h"

namespace kapsule::image {
namespace {

constexpr size_t kMaxLayers = 1024;  // what ParseManifest() reads

std::map<std::string, std::string> LabelsOf(const model::ModelFacts& facts) {
  std::map<std::string, std::string> labels = {{"io.kapsule.facts.name", facts.name},
                                               {"io.kapsule.facts.format", facts.format}};
  const auto add = [&labels](const char* name, const std::string& value) {
    if (!value.empty() && value != "0") labels["io.kapsule.facts." + std::string(name)] = value;
  };
  add("architecture", facts.architecture);
  add("parameters", std::to_string(facts.parameters));
  add("quantization", facts.quantization);
  add("context-length", std::to_string(facts.context_length));
  return labels;
}

// One build. The layers are appended bottom to top.
class Builder {
 public:
  Builder(const model::Plan& plan, const BuildOptions& options, oci::ImageTarget& target,
          Progress& progress)
      : plan_(plan), options_(options), target_(target), progress_(progress) {}

  absl::StatusOr<BuiltImage> Run();

 private:
  absl::Status AddModelLayers();
  absl::Status AddLayer(const LayerContent& content, const LayerNames& names, bool encrypt);
  absl::Status AddBaseLayers();
  absl::StatusOr<WrittenLayer> WriteLayer(const LayerContent& content, LayerOptions options);
  absl::StatusOr<oci::Descriptor> PutConfig();
  absl::Status PutManifest(const oci::Descriptor& config);
  absl::Status OnWritten(uint64_t bytes);
  absl::Status CheckCancelled() const;
  void StartLayer(const std::string& title, uint64_t size);

  const model::Plan& plan_;
  const BuildOptions& options_;
  oci::ImageTarget& target_;
  Progress& progress_;
  std::optional<BaseImage> base_;
  size_t layer_count_ = 0;
  std::vector<std::string> history_;  // of the model's layers
  BuiltImage image_;
};

absl::StatusOr<BuiltImage> Builder::Run() {
  if (options_.base != nullptr) {
    ASSIGN_OR_RETURN(base_, ReadBaseImage(*options_.base));
  }
  layer_count_ = plan_.weights.size() + 2 + (base_ ? base_->layers.size() : 0);
  if (layer_count_ > kMaxLayers)
    return InvalidArgument("{} layers, more than the limit of {}", layer_count_, kMaxLayers);
  RETURN_IF_ERROR(AddModelLayers());
  if (base_) RETURN_IF_ERROR(AddBaseLayers());
  ASSIGN_OR_RETURN(const oci::Descriptor config, PutConfig());
  RETURN_IF_ERROR(PutManifest(config));
  return std::move(image_);
}

absl::Status Builder::AddModelLayers() {
  const bool encrypt = !options_.recipients.empty();
  std::vector<model::PlannedFile> files = plan_.public_files;
  if (encrypt) {
    // docs/adr/0003: two encrypted images never share their bottom layer.
    std::array<std::byte, 16> id;
    RETURN_IF_ERROR(FillRandom(id));
    files.push_back({"kapsule/id", {}, ToHex(id) + "\n"});
  }
  RETURN_IF_ERROR(AddLayer(SkeletonContent(plan_.directories, files, options_.mtime),
                           {.kind = "skeleton"}, false));
  std::vector<oci::Digest> digests(plan_.weights.size());
  for (size_t i = 0; i < digests.size(); ++i) {
    const model::PlannedWeight& weight = plan_.weights[i];
    RETURN_IF_ERROR(AddLayer(WeightContent(weight, options_.mtime, &digests[i]),
                             {weight.kind(), weight.file.name}, encrypt));
  }
  ASSIGN_OR_RETURN(const std::vector<model::PlannedFile> small, plan_.SmallFiles(digests));
  return AddLayer(SmallContent(small, options_.mtime), {.kind = "config"}, encrypt);
}

absl::Status Builder::AddLayer(const LayerContent& content, const LayerNames& names, bool encrypt) {
  const std::string title = names.file.empty() ? names.kind : names.file;
  LayerOptions options{.chunk_size = options_.chunk_size,
                       .encrypt = encrypt,
                       .temp_folder = options_.temp_folder,
                       .on_written = [this](uint64_t bytes) { return OnWritten(bytes); }};
  RETURN_IF_ERROR(content.Measure(options));
  ASSIGN_OR_RETURN(const uint64_t size, StoredSize(options));
  StartLayer(title, size);
  absl::StatusOr<WrittenLayer> written = WriteLayer(content, std::move(options));
  if (!written.ok()) return Annotate(written.status(), "layer of " + title);
  const oci::Digest diff_id = written->diff_id;
  ASSIGN_OR_RETURN(oci::Descriptor descriptor,
                   DescribeLayer(*std::move(written), names, options_.recipients));
  image_.size += descriptor.size;
  image_.layers.push_back({std::move(descriptor), diff_id});
  history_.push_back("kapsule-ctl build: " + title);
  progress_.FinishLayer();
  return absl::OkStatus();
}

absl::StatusOr<WrittenLayer> Builder::WriteLayer(const LayerContent& content,
                                                 LayerOptions options) {
  ASSIGN_OR_RETURN(const uint64_t size, StoredSize(options));
  ASSIGN_OR_RETURN(std::unique_ptr<oci::BlobUpload> upload, target_.StartBlob(size));
  ASSIGN_OR_RETURN(const std::unique_ptr<LayerWriter> writer,
                   LayerWriter::Start(std::move(options), std::move(upload)));
  ASSIGN_OR_RETURN(const archive::Toc toc, content.WriteTar(*writer));
  return writer->Finish(toc);
}

absl::Status Builder::AddBaseLayers() {
  for (size_t i = 0; i < base_->layers.size(); ++i) {
    const oci::Descriptor& layer = base_->layers[i];
    StartLayer(fmt::format("base layer {}", layer.digest.hex().substr(0, 12)), layer.size);
    const absl::Status copied = CopyBlob(*options_.base, target_, layer,
                                         [this](uint64_t bytes) { return OnWritten(bytes); });
    if (!copied.ok()) return Annotate(copied, "base layer " + layer.digest.text());
    image_.size += layer.size;
    image_.layers.push_back({layer, base_->diff_ids[i]});
    progress_.FinishLayer();
  }
  return absl::OkStatus();
}

absl::StatusOr<oci::Descriptor> Builder::PutConfig() {
  ConfigParts parts{.history = history_,
                    .environment = plan_.environment,
                    .labels = LabelsOf(plan_.facts),
                    .created = options_.mtime};
  for (size_t i = 0; i < history_.size(); ++i) parts.diff_ids.push_back(image_.layers[i].diff_id);
  const std::string bytes = MakeConfig(parts, base_ ? &*base_ : nullptr);
  oci::Descriptor config;
  config.media_type = oci::kConfigType;
  config.digest = oci::Digest::Of(AsBytes(bytes));
  config.size = bytes.size();
  ASSIGN_OR_RETURN(const std::unique_ptr<oci::BlobUpload> upload, target_.StartBlob(config.size));
  RETURN_IF_ERROR(upload->Write(AsBytes(bytes)));
  RETURN_IF_ERROR(upload->Commit(config.digest, config.size));
  return config;
}

absl::Status Builder::PutManifest(const oci::Descriptor& config) {
  oci::Manifest manifest;
  manifest.media_type = oci::kManifestType;
  manifest.artifact_type = oci::kModelArtifactType;
  manifest.config = config;
  for (const BuiltLayer& layer : image_.layers) manifest.layers.push_back(layer.descriptor);
  const std::string bytes = oci::SerializeManifest(manifest);
  if (bytes.size() > oci::kMaxManifestBytes)
    return InvalidArgument("manifest of {} bytes, more than the limit of {}: use fewer recipients",
                           bytes.size(), oci::kMaxManifestBytes);
  RETURN_IF_ERROR(CheckCancelled());
  RETURN_IF_ERROR(target_.PutManifest(bytes, oci::kManifestType));
  image_.digest = oci::Digest::Of(AsBytes(bytes));
  image_.size += config.size + bytes.size();
  return absl::OkStatus();
}

absl::Status Builder::OnWritten(uint64_t bytes) {
  progress_.Advance(bytes);
  return CheckCancelled();
}

absl::Status Builder::CheckCancelled() const {
  if (options_.cancelled()) return Cancelled("nothing was published");
  return absl::OkStatus();
}

void Builder::StartLayer(const std::string& title, uint64_t size) {
  progress_.StartLayer(image_.layers.size() + 1, layer_count_, title, size);
}

}  // namespace

absl::StatusOr<BuiltImage> Build(const model::Plan& plan, const BuildOptions& options,
                                 oci::ImageTarget& target, Progress& progress) {
  return Builder(plan, options, target, progress).Run();
}

}  // namespace kapsule::image
