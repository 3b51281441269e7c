#include <sys/resource.h>

#include <charconv>
#include <cstdlib>
#include <memory>

#include "core/base/printable.h"
#include "core/image/builder.h"
#include "core/model/plan.h"
#include "kapsule-ctl/cancel.h"
#include "kapsule-ctl/command.h"
#include "kapsule-ctl/exit_code.h"
#include "kapsule-ctl/image_location.h"
#include "kapsule-ctl/terminal_progress.h"
#include "kapsule-ctl/units.h"

namespace kapsule::ctl {
namespace {
namespace fs = std::filesystem;

struct Options {
  std::string modelfile, tag, layout, base, name, context;
  std::vector<std::string> recipients;
  RegistryFlags registry;
  std::string chunk_size = "64KiB";
  std::string progress = "auto";
  bool json = false;
};

// https://reproducible-builds.org/specs/source-date-epoch/
absl::StatusOr<int64_t> SourceDate() {
  const char* text = std::getenv("SOURCE_DATE_EPOCH");
  if (text == nullptr) return 0;
  int64_t seconds = -1;
  const std::string_view digits(text);
  const auto [end, error] = std::from_chars(text, text + digits.size(), seconds);
  constexpr int64_t kYear10000 = 253'402'300'800;
  if (error != std::errc() || end != text + digits.size() || seconds < 0 || seconds >= kYear10000)
    return InvalidArgument("SOURCE_DATE_EPOCH is not a number of seconds since 1970");
  return seconds;
}

// The name that the model's folders are made from: that of the image, with
// --name in place of its last part; without an image's name the context's.
absl::StatusOr<oci::Reference> ModelName(const Options& options) {
  std::string last = options.name;
  if (last.empty() && options.tag.empty()) {
    std::error_code error;
    last = fs::weakly_canonical(options.context, error).filename().string();
  }
  if (options.tag.empty()) {
    absl::StatusOr<oci::Reference> reference = oci::Reference::Parse(last);
    if (!reference.ok()) return Annotate(reference.status(), "name the image by -t or --name");
    return reference;
  }
  ASSIGN_OR_RETURN(oci::Reference reference, oci::Reference::Parse(options.tag));
  if (reference.digest)
    return InvalidArgument("-t {}: an image's digest comes of the build", options.tag);
  if (last.empty()) return reference;
  const size_t slash = reference.repository.rfind('/') + 1;
  reference.repository.replace(slash, reference.repository.npos, last);
  return oci::Reference::Parse(reference.text());
}

absl::StatusOr<ImageLocation> TargetOf(const Options& options) {
  ImageLocation location;
  location.layout = options.layout;
  if (options.tag.empty()) return location;
  ASSIGN_OR_RETURN(location.reference, oci::Reference::Parse(options.tag));
  location.tag = location.reference.tag;
  return location;
}

// A layout's target holds a file open for each layer.
void AllowManyFiles() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

Json LayerJson(const image::BuiltLayer& layer) {
  const oci::Annotations& annotations = layer.descriptor.annotations;
  const auto kind = annotations.find(oci::kKindAnnotation);
  const auto title = annotations.find(oci::kTitleAnnotation);
  Json json = {{"digest", layer.descriptor.digest.text()},
               {"size", layer.descriptor.size},
               {"diffID", layer.diff_id.text()},
               {"mediaType", layer.descriptor.media_type},
               {"encrypted", oci::IsEncrypted(layer.descriptor.media_type)}};
  if (kind != annotations.end()) json["kind"] = kind->second;
  if (title != annotations.end()) json["title"] = title->second;
  return json;
}

absl::Status Print(const image::BuiltImage& image, const std::string& name, bool json) {
  if (json) {
    Json layers = Json::array();
    for (const image::BuiltLayer& layer : image.layers) layers.push_back(LayerJson(layer));
    return PrintResult(Json{{"name", name},
                            {"digest", image.digest.text()},
                            {"size", image.size},
                            {"layers", std::move(layers)}});
  }
  return PrintResult(fmt::format("name    {}\ndigest  {}\nsize    {}\nlayers  {}\n", name,
                                 image.digest.text(), FormatBytes(image.size),
                                 image.layers.size()));
}

absl::Status RunBuild(Options options) {
  RETURN_IF_ERROR(options.registry.ReadPassword());
  image::BuildOptions build;
  for (const std::string& file : options.recipients) {
    ASSIGN_OR_RETURN(build.recipients.emplace_back(), crypt::LoadPublicKey(file));
  }
  ASSIGN_OR_RETURN(build.chunk_size, ParseChunkSize(options.chunk_size));
  ASSIGN_OR_RETURN(build.mtime, SourceDate());
  if (const char* folder = std::getenv("TMPDIR"); folder != nullptr && *folder == '/')
    build.temp_folder = folder;
  build.cancelled = IsCancelled;

  ASSIGN_OR_RETURN(const oci::Reference name, ModelName(options));
  ASSIGN_OR_RETURN(const model::Plan plan,
                   model::MakePlan(options.modelfile, options.context, {.reference = name}));
  for (const std::string& warning : plan.warnings)
    fmt::print(stderr, "kapsule-ctl: warning: {}\n", Printable(warning, 4096));

  ASSIGN_OR_RETURN(const ImageLocation location, TargetOf(options));
  std::unique_ptr<oci::ImageSource> base;
  if (!options.base.empty()) {
    ASSIGN_OR_RETURN(const ImageLocation from, ImageLocation::Parse(options.base));
    const std::string& host =
        options.layout.empty() ? location.reference.host : from.reference.host;
    ASSIGN_OR_RETURN(base, OpenSource(from, options.registry, host));
    build.base = base.get();
  }
  AllowManyFiles();
  CatchSignals();
  ASSIGN_OR_RETURN(const std::unique_ptr<oci::ImageTarget> target,
                   OpenTarget(location, options.registry));
  const std::unique_ptr<image::Progress> progress = MakeProgress(options.progress);
  ASSIGN_OR_RETURN(const image::BuiltImage image, image::Build(plan, build, *target, *progress));
  return Print(image, target->name(), options.json);
}

void AddOptions(CLI::App& verb, Options& options) {
  verb.add_option("-f,--file", options.modelfile, "Modelfile; by default CONTEXT/Modelfile");
  verb.add_option("-t,--tag", options.tag, "Name of the image; without -o it is pushed there")
      ->check(CheckImageName);
  verb.add_option("-o,--output", options.layout, "Write an OCI layout into this folder instead");
  verb.add_option("--encryption-key", options.recipients,
                  "Public key or certificate (PEM or DER) that the layers are encrypted for; "
                  "may be given again: each private key opens them")
      ->allow_extra_args(false);
  verb.add_option("--base", options.base,
                  "Runtime image whose layers go on top: REF or oci:DIR[:TAG]")
      ->check(CheckImageLocation);
  verb.add_option("--name", options.name, "Name of the model's folders; by default the image's");
  options.registry.AddTo(verb);
  verb.add_option("--chunk-size", options.chunk_size,
                  "What is verified at once: 64KiB, or 16KiB for random reads")
      ->check([](const std::string& text) { return Message(ParseChunkSize(text).status()); })
      ->capture_default_str();
  verb.add_flag("--json", options.json, "Print the result as JSON");
  verb.add_option("--progress", options.progress, "How progress is shown on stderr")
      ->check(CLI::IsMember({"auto", "tty", "plain", "none"}))
      ->capture_default_str();
  verb.add_option("CONTEXT", options.context, "Folder that the Modelfile's paths start from")
      ->required();
}

}  // namespace

void AddBuild(CLI::App& app, Action& action) {
  CLI::App* verb = app.add_subcommand("build", "Builds an image from a Modelfile");
  auto options = std::make_shared<Options>();
  AddOptions(*verb, *options);
  verb->footer(
      std::string(
          "Without --encryption-key nothing is encrypted, and equal input gives an equal image\n"
          "(file times are SOURCE_DATE_EPOCH or 0). Nothing is published unless all of it is.\n\n"
          "Examples:\n"
          "  kapsule-ctl build -t registry.example.com/acme/llama:enc \\\n"
          "      --encryption-key keys/public.pem --base registry.example.com/acme/runtime:1 .\n"
          "  kapsule-ctl build -f Modelfile -t llama:enc -o image/ --encryption-key "
          "keys/public.pem .\n"
          "  kapsule-ctl build -t 127.0.0.1:5000/llama:plain --insecure .\n\n") +
      kExitCodesHelp);
  verb->callback([options, &action] {
    if (options->tag.empty() && options->layout.empty())
      throw CLI::RequiredError("-t NAME, -o DIR or both");
    action = [options] { return RunBuild(*options); };
  });
}

}  // namespace kapsule::ctl
