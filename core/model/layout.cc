#include "core/model/layout.h"

#include <algorithm>
#include <set>

namespace kapsule::model {
namespace {

constexpr size_t kMaxPath = 4095;
constexpr size_t kMaxComponent = 255;
constexpr size_t kMaxOllamaHost = 350;
constexpr size_t kMaxOllamaPart = 80;
constexpr size_t kMaxHfRepository = 96;

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t end; (end = text.find(separator, begin)) != text.npos; begin = end + 1)
    parts.push_back(text.substr(begin, end - begin));
  parts.push_back(text.substr(begin));
  return parts;
}

std::string Join(const std::vector<std::string>& parts, size_t count, const char* separator) {
  std::string text;
  for (size_t i = 0; i < count; ++i) text += (i == 0 ? "" : separator) + parts[i];
  return text;
}

bool IsAlnum(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

// Ollama's rule for one part of a name (types/model/name.go).
bool IsOllamaPart(std::string_view part, std::string_view extra, size_t limit) {
  if (part.empty() || part.size() > limit || !(IsAlnum(part[0]) || part[0] == '_')) return false;
  return std::all_of(part.begin(), part.end(), [&](char c) {
    return IsAlnum(c) || c == '_' || c == '-' || extra.find(c) != extra.npos;
  });
}

std::optional<OllamaName> ToOllamaName(const oci::Reference& reference,
                                       const std::vector<std::string>& parts) {
  OllamaName name{reference.host, "library", parts.back(), reference.tag};
  if (parts.size() > 1) name.name_space = Join(parts, parts.size() - 1, "-");
  std::replace(name.name_space.begin(), name.name_space.end(), '.', '-');
  const bool valid = IsOllamaPart(name.host, ".:", kMaxOllamaHost) &&
                     IsOllamaPart(name.name_space, "", kMaxOllamaPart) &&
                     IsOllamaPart(name.model, ".", kMaxOllamaPart) &&
                     IsOllamaPart(name.tag, ".", kMaxOllamaPart) && IsSafeComponent(name.host);
  return valid ? std::optional(std::move(name)) : std::nullopt;
}

// Each run of "-" and "." as its first character: the hub refuses "--" and "..".
std::string WithoutRuns(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool punctuation = c == '-' || c == '.';
    if (punctuation && !out.empty() && (out.back() == '-' || out.back() == '.')) continue;
    out += c;
  }
  return out;
}

// huggingface_hub validate_repo_id: at most 96 of [\w.-], none of "--", "..",
// and no part begins or ends with "-" or ".".
std::optional<std::string> ToHfRepository(const std::vector<std::string>& parts) {
  std::string repository = WithoutRuns(parts.back());
  if (parts.size() > 1)
    repository = WithoutRuns(Join(parts, parts.size() - 1, "-")) + "/" + repository;
  if (repository.size() > kMaxHfRepository || repository.ends_with(".git")) return std::nullopt;
  for (const std::string& part : Split(repository, '/'))
    if (!IsOllamaPart(part, ".", kMaxHfRepository) || part.back() == '-' || part.back() == '.')
      return std::nullopt;
  return repository;
}

}  // namespace

bool IsSafeComponent(std::string_view component) {
  if (component.empty() || component.size() > kMaxComponent) return false;
  if (component == "." || component == "..") return false;
  return std::none_of(component.begin(), component.end(), [](char c) {
    return c == '/' || static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
  });
}

absl::Status CheckPath(std::string_view path) {
  if (path.size() > kMaxPath)
    return InvalidArgument("a path of {} bytes, more than the limit of {}", path.size(), kMaxPath);
  for (const std::string& component : Split(std::string(path), '/'))
    if (!IsSafeComponent(component))
      return InvalidArgument("\"{}\" cannot be a path in an image", path);
  return absl::OkStatus();
}

std::vector<std::string> ParentDirectories(const std::vector<std::string>& paths) {
  std::set<std::string> parents;
  for (const std::string& path : paths)
    for (size_t slash = path.find('/'); slash != path.npos; slash = path.find('/', slash + 1))
      parents.insert(path.substr(0, slash));
  return {parents.begin(), parents.end()};
}

absl::StatusOr<Layout> Layout::Make(const oci::Reference& reference) {
  const std::vector<std::string> parts = Split(reference.repository, '/');
  for (const std::string& part : {parts.back(), reference.tag})
    if (!IsSafeComponent(part))
      return InvalidArgument("\"{}\" of image name {} cannot be a file name", part,
                             reference.text());
  Layout layout;
  layout.name_ = parts.back();
  layout.tag_ = reference.tag;
  layout.ollama_ = ToOllamaName(reference, parts);
  layout.hf_ = ToHfRepository(parts);
  return layout;
}

std::string Layout::ModelPath(std::string_view file) const {
  return fmt::format("models/{}/{}", name_, file);
}

std::string Layout::OllamaBlobPath(const oci::Digest& digest) {
  return "ollama/models/blobs/sha256-" + digest.hex();
}

std::string Layout::OllamaManifestPath() const {
  return fmt::format("ollama/models/manifests/{}/{}/{}/{}", ollama_->host, ollama_->name_space,
                     ollama_->model, ollama_->tag);
}

std::string Layout::HfFolder() const {
  const std::vector<std::string> parts = Split(*hf_, '/');
  return "hf/hub/models--" + Join(parts, parts.size(), "--");
}

std::string Layout::HfSnapshotPath(std::string_view commit, std::string_view file) const {
  return fmt::format("{}/snapshots/{}/{}", HfFolder(), commit, file);
}

std::string Layout::HfRefPath(std::string_view ref) const {
  return fmt::format("{}/refs/{}", HfFolder(), ref);
}

std::vector<std::string> Layout::Skeleton(bool with_ollama) const {
  std::vector<std::string> files = {"kapsule/x", ModelPath("x")};
  if (with_ollama) {
    files.push_back(OllamaManifestPath());
    files.push_back("ollama/models/blobs/x");
  }
  if (hf_.has_value()) {
    files.push_back(HfRefPath("x"));
    files.push_back(HfFolder() + "/snapshots/x");
  }
  return ParentDirectories(files);
}

std::string CommitId(const oci::Reference& reference, const std::vector<NamedSize>& weights,
                     const std::vector<NamedDigest>& small) {
  // Names hold no line ends (CheckPath), so no two lists give one text.
  std::string text = fmt::format("kapsule hub snapshot v1\nmodel {}\ntag {}\n",
                                 reference.repository, reference.tag);
  for (const NamedSize& weight : weights)
    text += fmt::format("weight {} {}\n", weight.size, weight.name);
  for (const NamedDigest& file : small)
    text += fmt::format("file {} {}\n", file.digest.text(), file.name);
  return oci::Digest::Of(AsBytes(text)).hex().substr(0, 40);
}

std::vector<std::string> ModelEnvironment(bool ollama, bool hf) {
  std::vector<std::string> environment;
  if (ollama) environment = {"OLLAMA_MODELS=/ollama/models", "OLLAMA_NOPRUNE=1"};
  if (hf) environment.insert(environment.end(), {"HF_HUB_CACHE=/hf/hub", "HF_HUB_OFFLINE=1"});
  return environment;
}

}  // namespace kapsule::model
