#include "core/model/planner.h"

#include <algorithm>

namespace kapsule::model {
namespace {

constexpr char kAdapterFolder[] = "adapter/";

std::string SmallName(const SmallInput& small) {
  return (small.role == Role::kAdapter ? kAdapterFolder : "") + small.name;
}

std::string LicenseName(size_t i) { return i == 0 ? "LICENSE" : fmt::format("LICENSE.{}", i + 1); }

}  // namespace

Planner::Planner(const oci::Reference& reference, const Layout& layout, const Modelfile& modelfile,
                 Inputs inputs)
    : reference_(reference), layout_(layout), modelfile_(modelfile), inputs_(std::move(inputs)) {
  for (const WeightFile& weight : inputs_.weights) {
    models_ += weight.role == Role::kModel;
    projectors_ += weight.role == Role::kProjector;
  }
}

Plan Planner::Make() {
  plan_.warnings = modelfile_.warnings;
  plan_.warnings.insert(plan_.warnings.end(), inputs_.warnings.begin(), inputs_.warnings.end());
  ollama_ = DecideOllama();
  if (!layout_.hf_repository().has_value())
    plan_.warnings.push_back(
        fmt::format("no Hugging Face layout: the hub has no name like {}", reference_.repository));
  plan_.facts = FactsOf(layout_.name(), inputs_);
  plan_.directories = layout_.Skeleton(ollama_);
  plan_.public_files.push_back({"kapsule/model.json", {}, FactsJson(plan_.facts)});
  plan_.environment = ModelEnvironment(ollama_, layout_.hf_repository().has_value());
  PlanTexts();
  PlanSmallInputs();
  PlanWeights();
  PlanHubRefs();
  if (ollama_) PlanOllamaDocuments();
  return std::move(plan_);
}

// Ollama's manifest holds one GGUF model that is not split.
bool Planner::DecideOllama() {
  const auto no = [this](const std::string& why) {
    plan_.warnings.push_back("no Ollama layout: " + why);
    return false;
  };
  const bool gguf = std::all_of(inputs_.weights.begin(), inputs_.weights.end(),
                                [](const WeightFile& w) { return w.gguf.has_value(); });
  if (!gguf) return no("Ollama reads GGUF files only");
  if (models_ != 1)
    return no(fmt::format("it holds one model file, not {}; merge a split set", models_));
  if (!layout_.ollama().has_value())
    return no(fmt::format("Ollama has no name like {}", reference_.text()));
  if (inputs_.weights.front().gguf->has_chat_template && !modelfile_.template_text.has_value())
    plan_.warnings.push_back(
        "the Modelfile has no TEMPLATE: some versions of Ollama do not use the model's own");
  return true;
}

std::string Planner::ModelName(const WeightFile& weight) const {
  if (weight.role == Role::kAdapter) return kAdapterFolder + weight.name;
  if (!weight.gguf.has_value()) return weight.name;
  if (weight.role == Role::kModel && models_ == 1) return "model.gguf";
  if (weight.role == Role::kProjector && projectors_ == 1) return "mmproj.gguf";
  return weight.name;
}

// Tools that look into a hub repository choose by file name: the quantisation
// of a model, "mmproj" of a projector.
std::string Planner::HubName(const WeightFile& weight) const {
  const bool tells = weight.role == Role::kModel ? weight.name.ends_with(".gguf")
                                                 : weight.name.find("mmproj") != std::string::npos;
  return weight.role != Role::kAdapter && tells ? weight.name : ModelName(weight);
}

std::string Planner::PackModelfile() const {
  std::vector<std::string> from, adapters;
  for (const WeightFile& weight : inputs_.weights) {
    // An adapter can be named by FROM too.
    const bool adapter = weight.role == Role::kAdapter && !modelfile_.adapters.empty();
    std::vector<std::string>& names = adapter ? adapters : from;
    // A directory is named as a whole.
    if (weight.gguf.has_value())
      names.push_back("./" + ModelName(weight));
    else if (names.empty())
      names.push_back(adapter ? "./adapter" : ".");
  }
  return PackedModelfile(modelfile_, from, adapters);
}

void Planner::AddHubLink(const std::string& name, std::vector<std::string>& links) const {
  if (layout_.hf_repository().has_value()) links.push_back(layout_.HfSnapshotPath(commit_, name));
}

void Planner::PlanTexts() {
  plan_.fixed_files.push_back({layout_.ModelPath("Modelfile"), {}, PackModelfile()});
  for (size_t i = 0; i < modelfile_.licenses.size(); ++i)
    plan_.fixed_files.push_back({layout_.ModelPath(LicenseName(i)), {}, modelfile_.licenses[i]});

  // The Modelfile holds every text, so the commit need not name them.
  std::vector<NamedSize> weights;
  for (const WeightFile& weight : inputs_.weights)
    weights.push_back({ModelName(weight), weight.size});
  std::vector<NamedDigest> small;
  small.push_back({"Modelfile", oci::Digest::Of(AsBytes(plan_.fixed_files.front().content))});
  for (const SmallInput& input : inputs_.small)
    small.push_back({SmallName(input), oci::Digest::Of(AsBytes(input.content))});
  commit_ = CommitId(reference_, weights, small);
}

void Planner::PlanSmallInputs() {
  for (SmallInput& small : inputs_.small) {
    const std::string name = SmallName(small);
    PlannedFile file{layout_.ModelPath(name), {}, std::move(small.content)};
    AddHubLink(name, file.links);
    plan_.fixed_files.push_back(std::move(file));
  }
}

void Planner::PlanWeights() {
  for (const WeightFile& weight : inputs_.weights) {
    PlannedWeight planned;
    planned.file = weight;
    planned.path = layout_.ModelPath(ModelName(weight));
    planned.ollama_blob = ollama_;
    AddHubLink(HubName(weight), planned.links);
    plan_.weights.push_back(std::move(planned));
  }
}

void Planner::PlanHubRefs() {
  if (!layout_.hf_repository().has_value()) return;
  PlannedFile main{layout_.HfRefPath("main"), {}, commit_};
  if (layout_.tag() != "main") main.links.push_back(layout_.HfRefPath(layout_.tag()));
  plan_.fixed_files.push_back(std::move(main));
}

// In the order in which Ollama itself writes them.
void Planner::PlanOllamaDocuments() {
  plan_.ollama = Plan::Ollama{layout_.OllamaManifestPath(), {}};
  const auto add = [this](const char* type, const std::string& content) {
    const oci::Digest digest = oci::Digest::Of(AsBytes(content));
    plan_.ollama->documents.push_back(
        {std::string(kOllamaTypePrefix) + type, digest, content.size()});
    const std::string path = Layout::OllamaBlobPath(digest);
    if (!blobs_.insert(path).second) return;
    const auto same =
        std::find_if(plan_.fixed_files.begin(), plan_.fixed_files.end(),
                     [&](const PlannedFile& file) { return file.content == content; });
    if (same != plan_.fixed_files.end())
      same->links.push_back(path);
    else
      plan_.fixed_files.push_back({path, {}, content});
  };
  if (!modelfile_.template_text.value_or("").empty()) add("template", *modelfile_.template_text);
  if (!modelfile_.system.value_or("").empty()) add("system", *modelfile_.system);
  for (const std::string& license : modelfile_.licenses) add("license", license);
  if (!modelfile_.parameters.empty()) add("params", ParamsJson(modelfile_.parameters));
  if (!modelfile_.messages.empty()) add("messages", MessagesJson(modelfile_.messages));
}

}  // namespace kapsule::model
