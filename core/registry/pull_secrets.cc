#include "core/registry/pull_secrets.h"

#include <algorithm>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/registry/docker_auth.h"
#include "core/registry/image_match.h"

namespace kapsule::registry {
namespace fs = std::filesystem;
namespace {

constexpr size_t kMaxSecretBytes = 1 << 20;  // Kubernetes' own limit
constexpr size_t kMaxEntries = 256;
constexpr char kOldName[] = ".dockercfg";

bool IsSecret(const std::string& name) {
  return name == ".dockerconfigjson" || name == kOldName || name.ends_with(".json");
}

// Sorted, without Kubernetes' "..data" and its like.
absl::StatusOr<std::vector<fs::path>> Entries(const fs::path& folder) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (!it->path().filename().native().starts_with("..")) entries.push_back(it->path());
    if (entries.size() > kMaxEntries)
      return InvalidArgument("{}: more than {} entries", folder.string(), kMaxEntries);
  }
  if (error) return ErrnoStatus(error.value(), folder.string());
  std::sort(entries.begin(), entries.end());
  return entries;
}

absl::StatusOr<std::vector<fs::path>> SecretFiles(const fs::path& path, bool look_deeper = true) {
  std::error_code error;
  if (!fs::exists(path, error)) return std::vector<fs::path>();
  if (!fs::is_directory(path, error)) return std::vector<fs::path>{path};
  ASSIGN_OR_RETURN(const std::vector<fs::path> entries, Entries(path));
  std::vector<fs::path> files, folders;
  for (const fs::path& entry : entries) {
    if (fs::is_directory(entry, error))
      folders.push_back(entry);
    else if (IsSecret(entry.filename()))
      files.push_back(entry);
  }
  if (!look_deeper) return files;
  for (const fs::path& folder : folders) {
    ASSIGN_OR_RETURN(const std::vector<fs::path> more, SecretFiles(folder, false));
    files.insert(files.end(), more.begin(), more.end());
  }
  return files;
}

absl::StatusOr<std::optional<Credentials>> FindInSecret(const fs::path& file,
                                                        const std::string& image) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(file, kMaxSecretBytes));
  const absl::StatusOr<Json> json = ParseJson(text, kMaxSecretBytes);
  if (!json.ok()) return InvalidArgument("not JSON");  // the parser's message could quote it
  const Json* auths = file.filename() == kOldName ? &*json : FindMember(*json, "auths");
  const Json* auth = auths == nullptr ? nullptr : FindAuthForImage(*auths, image);
  if (auth == nullptr) return std::nullopt;
  return ParseDockerAuth(*auth);
}

}  // namespace

NextCredentials EachPullSecret(const std::vector<fs::path>& paths, const std::string& host,
                               const std::string& repository) {
  return [paths, image = host + "/" + repository, next_path = size_t{0}, next_file = size_t{0},
          files = std::vector<fs::path>()]() mutable -> absl::StatusOr<std::optional<Credentials>> {
    for (;;) {
      if (next_file == files.size()) {
        if (next_path == paths.size()) return std::nullopt;
        files.clear();
        next_file = 0;
        ASSIGN_OR_RETURN(files, SecretFiles(paths[next_path++]));
        continue;
      }
      const fs::path& file = files[next_file++];
      absl::StatusOr<std::optional<Credentials>> found = FindInSecret(file, image);
      // A secret may be replaced while we look.
      if (absl::IsNotFound(found.status())) continue;
      if (!found.ok()) return Annotate(found.status(), "pull secret " + file.string());
      if (found->has_value()) return found;
    }
  };
}

absl::StatusOr<std::optional<Credentials>> FindPullSecret(const std::vector<fs::path>& paths,
                                                          const std::string& host,
                                                          const std::string& repository) {
  return EachPullSecret(paths, host, repository)();
}

}  // namespace kapsule::registry
