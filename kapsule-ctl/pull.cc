#include <unistd.h>

#include <memory>

#include "core/content/layout_target.h"
#include "core/image/base_image.h"
#include "kapsule-ctl/cancel.h"
#include "kapsule-ctl/command.h"
#include "kapsule-ctl/exit_code.h"
#include "kapsule-ctl/image_location.h"
#include "kapsule-ctl/node_pull.h"
#include "kapsule-ctl/node_settings.h"
#include "kapsule-ctl/terminal_progress.h"
#include "kapsule-ctl/units.h"

namespace kapsule::ctl {
namespace {

// What CLI11 gives for --containerd without an address.
constexpr char kNoAddress[] = "true";

struct Options {
  std::string name, layout;
  std::string containerd, ns = "default", snapshotter;
  RegistryFlags registry;
  std::string progress = "auto";
  bool json = false;
};

std::string Title(const oci::Descriptor& layer) {
  const auto title = layer.annotations.find(oci::kTitleAnnotation);
  return title == layer.annotations.end() ? layer.digest.text() : title->second;
}

// Blobs that are there are not fetched again: those of an earlier pull that was cut off.
absl::StatusOr<image::ImageManifest> PullToLayout(oci::ImageSource& source,
                                                  oci::ImageTarget& target,
                                                  image::Progress& progress) {
  ASSIGN_OR_RETURN(image::ImageManifest image, image::ReadImageManifest(source));
  std::vector<oci::Descriptor> blobs = image.manifest.layers;
  blobs.push_back(image.manifest.config);
  for (size_t i = 0; i < blobs.size(); ++i) {
    progress.StartLayer(i + 1, blobs.size(), Title(blobs[i]), blobs[i].size);
    RETURN_IF_ERROR(image::CopyBlob(source, target, blobs[i], [&](uint64_t bytes) {
      progress.Advance(bytes);
      return IsCancelled() ? Cancelled("pull {}", source.name()) : absl::OkStatus();
    }));
    progress.FinishLayer();
  }
  RETURN_IF_ERROR(target.PutManifest(image.original.bytes, image.original.media_type));
  return image;
}

absl::Status PrintLayout(const image::ImageManifest& image, const std::string& name, bool json) {
  uint64_t size = image.manifest.config.size;
  for (const oci::Descriptor& layer : image.manifest.layers) size += layer.size;
  if (json)
    return PrintResult(Json{{"name", name},
                            {"digest", image.digest.text()},
                            {"size", size},
                            {"layers", image.manifest.layers.size()}});
  return PrintResult(fmt::format("name    {}\ndigest  {}\nsize    {}\nlayers  {}\n", name,
                                 image.digest.text(), FormatBytes(size),
                                 image.manifest.layers.size()));
}

const char* StateName(PulledLayer::State state) {
  switch (state) {
    case PulledLayer::State::kRegistered:
      return "registered";
    case PulledLayer::State::kUnpacked:
      return "unpacked";
    case PulledLayer::State::kPresent:
      break;
  }
  return "present";
}

Json ImageJson(const PulledImage& image, const std::string& name, const NodePullOptions& node) {
  Json layers = Json::array();
  for (const PulledLayer& layer : image.layers)
    layers.push_back({{"digest", layer.descriptor.digest.text()},
                      {"size", layer.descriptor.size},
                      {"chainID", layer.chain_id.text()},
                      {"state", StateName(layer.state)}});
  return {{"name", name},
          {"digest", image.digest.text()},
          {"namespace", node.ns},
          {"snapshotter", node.snapshotter},
          {"changed", image.changed},
          {"layers", std::move(layers)}};
}

std::string ImageText(const PulledImage& image, const std::string& name,
                      const NodePullOptions& node) {
  size_t counts[3] = {};
  uint64_t sizes[3] = {};
  for (const PulledLayer& layer : image.layers) {
    ++counts[static_cast<size_t>(layer.state)];
    sizes[static_cast<size_t>(layer.state)] += layer.descriptor.size;
  }
  std::string text = fmt::format(
      "name         {}\ndigest       {}\nnamespace    {}\n"
      "snapshotter  {}\nlayers       {}",
      name, image.digest.text(), node.ns, node.snapshotter, image.layers.size());
  constexpr const char* kWhat[] = {"present", "registered, not fetched", "fetched and unpacked"};
  for (size_t i = 0; i < std::size(counts); ++i) {
    if (counts[i] != 0)
      text += fmt::format("\n             {} {} ({})", counts[i], kWhat[i], FormatBytes(sizes[i]));
  }
  return text + "\n";
}

// What the command line does not say comes from the node's configuration.
absl::StatusOr<NodePullOptions> NodeOptions(const Options& options) {
  NodeSettings settings;
  if (access(kNodeConfig, F_OK) == 0) {
    ASSIGN_OR_RETURN(settings, LoadNodeSettings(kNodeConfig));
  }
  return NodePullOptions{
      .containerd =
          options.containerd == kNoAddress ? settings.containerd_address : options.containerd,
      .ns = options.ns,
      .snapshotter = options.snapshotter.empty() ? settings.snapshotter_name : options.snapshotter,
      .cancelled = IsCancelled};
}

absl::Status RunPull(Options options) {
  RETURN_IF_ERROR(options.registry.ReadPassword());
  ImageLocation from;
  ASSIGN_OR_RETURN(from.reference, oci::Reference::Parse(options.name));
  ASSIGN_OR_RETURN(const std::unique_ptr<oci::ImageSource> source,
                   OpenSource(from, options.registry, from.reference.host));
  CatchSignals();
  const std::unique_ptr<image::Progress> progress = MakeProgress(options.progress);
  if (options.containerd.empty()) {
    ASSIGN_OR_RETURN(const std::unique_ptr<oci::ImageTarget> target,
                     content::LayoutTarget::Open(options.layout, from.reference.tag));
    ASSIGN_OR_RETURN(const image::ImageManifest image, PullToLayout(*source, *target, *progress));
    return PrintLayout(image, target->name(), options.json);
  }
  ASSIGN_OR_RETURN(const NodePullOptions node, NodeOptions(options));
  ASSIGN_OR_RETURN(const PulledImage image, PullToNode(*source, from.reference, node, *progress));
  if (options.json) return PrintResult(ImageJson(image, source->name(), node));
  return PrintResult(ImageText(image, source->name(), node));
}

void AddOptions(CLI::App& verb, Options& options) {
  CLI::Option* containerd =
      verb.add_flag("--containerd", options.containerd,
                    "Pull into containerd; --containerd=SOCKET names another than the node's own")
          ->check([](const std::string& text) {
            return text == kNoAddress || text.starts_with('/')
                       ? std::string()
                       : "\"" + text + "\" is not the path of a socket";
          });
  verb.add_option("--namespace", options.ns, "containerd's namespace")
      ->needs(containerd)
      ->capture_default_str();
  verb.add_option("--snapshotter", options.snapshotter,
                  "kapsule-snapshotter's name in containerd's proxy_plugins; by default the node's")
      ->needs(containerd);
  verb.add_option("-o,--output", options.layout, "Write an OCI layout into this folder instead")
      ->excludes(containerd);
  options.registry.AddTo(verb);
  verb.add_flag("--json", options.json, "Print the result as JSON");
  verb.add_option("--progress", options.progress, "How progress is shown on stderr")
      ->check(CLI::IsMember({"auto", "tty", "plain", "none"}))
      ->capture_default_str();
  verb.add_option("IMAGE", options.name, "Name of the image in its registry")
      ->required()
      ->check(CheckImageName);
}

}  // namespace

void AddPull(CLI::App& app, Action& action) {
  CLI::App* verb = app.add_subcommand("pull", "Pulls an image into containerd or a folder");
  auto options = std::make_shared<Options>();
  AddOptions(*verb, *options);
  verb->footer(
      std::string(
          "With --containerd no byte of the model is fetched: ctr run starts at once, and the "
          "node\n"
          "reads from the registry what a container touches, with the node's own credentials.\n"
          "Ordinary layers are fetched and unpacked. Pulling again changes nothing; a pull that\n"
          "was cut off is gone on with for a day. With -o, finished blobs are not fetched "
          "again.\n\n"
          "Examples:\n"
          "  kapsule-ctl pull --containerd registry.example.com/acme/llama:enc\n"
          "  kapsule-ctl pull --containerd=/run/k3s/containerd/containerd.sock --namespace k8s.io "
          "\\\n"
          "      --snapshotter kapsule registry.example.com/acme/llama:enc\n"
          "  kapsule-ctl pull registry.example.com/acme/llama:enc -o image/\n\n") +
      kExitCodesHelp);
  verb->callback([options, &action] {
    if (options->containerd.empty() && options->layout.empty())
      throw CLI::RequiredError("--containerd or -o DIR");
    action = [options] { return RunPull(*options); };
  });
}

}  // namespace kapsule::ctl
