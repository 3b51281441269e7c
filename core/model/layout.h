// Where the files of a model stand in the image. Every path is relative, made
// of safe components, and one file has one inode under all its names.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/oci/digest.h"
#include "core/oci/reference.h"

namespace kapsule::model {

// 1 to 255 bytes, neither "." nor "..", no '/', no byte below 0x20, no DEL.
bool IsSafeComponent(std::string_view component);
// InvalidArgument unless `path` is relative, of safe components and at most 4,095 bytes.
absl::Status CheckPath(std::string_view path);
// Every directory above the paths, sorted, so parents stand first.
std::vector<std::string> ParentDirectories(const std::vector<std::string>& paths);

// host/namespace/model/tag as Ollama's directories take them.
struct OllamaName {
  std::string host, name_space, model, tag;
};

// The names of one model. Constant after Make().
//   acme/tiny:enc on ghcr.io   models/tiny, ghcr.io/acme/tiny/enc, models--acme--tiny
//   ghcr.io/org/sub/tiny:1     models/tiny, ghcr.io/org-sub/tiny/1, models--org-sub--tiny
//   localhost:5000/tiny:1      models/tiny, localhost:5000/library/tiny/1, models--tiny
class Layout {
 public:
  // InvalidArgument: the last part of the repository cannot be a directory's name.
  static absl::StatusOr<Layout> Make(const oci::Reference& reference);

  const std::string& name() const { return name_; }  // "tiny"
  const std::string& tag() const { return tag_; }
  // Null where Ollama (or the Hugging Face hub) has no such name.
  const std::optional<OllamaName>& ollama() const { return ollama_; }
  const std::optional<std::string>& hf_repository() const { return hf_; }

  // models/tiny/<file>
  std::string ModelPath(std::string_view file) const;
  // ollama/models/blobs/sha256-<hex>
  static std::string OllamaBlobPath(const oci::Digest& digest);
  // ollama/models/manifests/<host>/<namespace>/<model>/<tag>; ollama() is set.
  std::string OllamaManifestPath() const;
  // hf/hub/models--acme--tiny/snapshots/<commit>/<file>; hf_repository() is set.
  std::string HfSnapshotPath(std::string_view commit, std::string_view file) const;
  // hf/hub/models--acme--tiny/refs/<ref>
  std::string HfRefPath(std::string_view ref) const;

  // The directories of layer 0. They stop above anything that depends on the
  // content: layer 0 is never encrypted, and a name derived from the content
  // would let a guess of it be confirmed.
  std::vector<std::string> Skeleton(bool with_ollama) const;

 private:
  std::string HfFolder() const;

  std::string name_, tag_;
  std::optional<OllamaName> ollama_;
  std::optional<std::string> hf_;  // "acme/tiny"
};

// The snapshot's name in the Hugging Face layout: 40 hex digits, from names,
// sizes and small files, so that it is known before any weights are read.
struct NamedSize {
  std::string name;
  uint64_t size = 0;
};
struct NamedDigest {
  std::string name;
  oci::Digest digest;
};
std::string CommitId(const oci::Reference& reference, const std::vector<NamedSize>& weights,
                     const std::vector<NamedDigest>& small);

// OLLAMA_MODELS, HF_HUB_CACHE and so on for the image's config, for the layouts
// that the image has.
std::vector<std::string> ModelEnvironment(bool ollama, bool hf);

}  // namespace kapsule::model
