#include <memory>

#include "core/base/printable.h"
#include "core/image/base_image.h"
#include "kapsule-ctl/command.h"
#include "kapsule-ctl/image_location.h"
#include "kapsule-ctl/units.h"

namespace kapsule::ctl {
namespace {

struct Options {
  std::string location;
  RegistryFlags registry;
  bool json = false;
};

struct Layer {
  oci::Descriptor descriptor;
  std::string kind;                  // "model"; "other" for a layer that is not Kapsule's
  std::string title;                 // may be empty
  std::vector<std::string> schemes;  // "jwe", …: how its key is wrapped
};

Layer LayerOf(const oci::Descriptor& descriptor) {
  Layer layer{descriptor, "other", "", {}};
  for (const auto& [name, value] : descriptor.annotations) {
    constexpr std::string_view kKeys = "org.opencontainers.image.enc.keys.";
    if (name.starts_with(kKeys)) layer.schemes.push_back(name.substr(kKeys.size()));
    if (name == oci::kTitleAnnotation) layer.title = value;
    if (name == oci::kKindAnnotation) layer.kind = value.substr(value.rfind('.') + 1);
  }
  return layer;
}

Json LayerJson(const Layer& layer) {
  Json json = {{"digest", layer.descriptor.digest.text()},
               {"size", layer.descriptor.size},
               {"mediaType", layer.descriptor.media_type},
               {"kind", layer.kind},
               {"encrypted", oci::IsEncrypted(layer.descriptor.media_type)},
               {"keys", layer.schemes}};
  if (!layer.title.empty()) json["title"] = layer.title;
  return json;
}

std::string LayerLine(size_t number, const Layer& layer) {
  const bool encrypted = oci::IsEncrypted(layer.descriptor.media_type);
  return fmt::format(
      "{:>6}  {:<10}{:>12}  {:<10}  {}\n", number, Printable(layer.kind),
      FormatBytes(layer.descriptor.size),
      encrypted ? Printable(fmt::format("{}", fmt::join(layer.schemes, ","))) : "plain",
      Printable(layer.title));
}

absl::Status Inspect(Options options) {
  RETURN_IF_ERROR(options.registry.ReadPassword());
  ASSIGN_OR_RETURN(const ImageLocation location, ImageLocation::Parse(options.location));
  ASSIGN_OR_RETURN(const std::unique_ptr<oci::ImageSource> source,
                   OpenSource(location, options.registry, location.reference.host));
  ASSIGN_OR_RETURN(const image::ImageManifest image, image::ReadImageManifest(*source));
  uint64_t size = image.manifest.config.size;
  Json layers = Json::array();
  std::string lines;
  for (const oci::Descriptor& descriptor : image.manifest.layers) {
    const Layer layer = LayerOf(descriptor);
    size += descriptor.size;
    layers.push_back(LayerJson(layer));
    lines += LayerLine(layers.size(), layer);
  }
  if (options.json)
    return PrintResult(Json{{"name", source->name()},
                            {"digest", image.digest.text()},
                            {"mediaType", image.manifest.media_type},
                            {"artifactType", image.manifest.artifact_type},
                            {"size", size},
                            {"layers", std::move(layers)}});
  return PrintResult(
      fmt::format("name    {}\ndigest  {}\ntype    {}\nsize    {}\nlayers  kind              size  "
                  "key         file\n{}",
                  source->name(), image.digest.text(),
                  image.manifest.artifact_type.empty() ? image.manifest.media_type
                                                       : Printable(image.manifest.artifact_type),
                  FormatBytes(size), lines));
}

}  // namespace

void AddInspect(CLI::App& app, Action& action) {
  CLI::App* verb = app.add_subcommand("inspect", "Shows an image's layers");
  auto options = std::make_shared<Options>();
  verb->add_option("IMAGE", options->location, "REF, or oci:DIR[:TAG]")
      ->required()
      ->check(CheckImageLocation);
  options->registry.AddTo(*verb);
  verb->add_flag("--json", options->json, "Print the result as JSON");
  verb->footer(
      "Examples:\n"
      "  kapsule-ctl inspect registry.example.com/acme/llama:enc\n"
      "  kapsule-ctl inspect --json oci:image/:enc\n");
  verb->callback([options, &action] { action = [options] { return Inspect(*options); }; });
}

}  // namespace kapsule::ctl
