#include "core/model/input_files.h"

#include <pwd.h>

#include <algorithm>
#include <cstdlib>
#include <set>
#include <span>

#include "core/model/layout.h"
#include "core/model/split_name.h"

namespace kapsule::model {
namespace {
namespace fs = std::filesystem;

constexpr size_t kMaxDirectoryEntries = 100'000;

absl::StatusOr<std::string> HomeOf(const std::string& user) {
  if (user.empty()) {
    const char* home = std::getenv("HOME");
    if (home == nullptr || *home == '\0') return NotFound("HOME is not set");
    return std::string(home);
  }
  std::string buffer(16 << 10, '\0');
  passwd entry{};
  passwd* found = nullptr;
  if (getpwnam_r(user.c_str(), &entry, buffer.data(), buffer.size(), &found) != 0 ||
      found == nullptr)
    return NotFound("failed to find user '{}'", user);
  return std::string(entry.pw_dir);
}

// True where something is there; errors other than "not there" are returned.
absl::StatusOr<bool> Exists(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) return false;
  if (error) return ErrnoStatus(error.value(), path.string());
  return true;
}

// The real place of `path`, which must be a regular file (opening a FIFO would wait).
absl::StatusOr<fs::path> RegularFile(const fs::path& path) {
  std::error_code error;
  const fs::path real = fs::canonical(path, error);
  if (error) return ErrnoStatus(error.value(), path.string());
  if (!fs::is_regular_file(real, error))
    return InvalidArgument("{}: not a regular file", path.string());
  return real;
}

struct Entry {
  std::string name;
  bool is_directory = false;
};

// Names in a directory, sorted; hidden ones are left out.
absl::StatusOr<std::vector<Entry>> List(const fs::path& directory) {
  std::error_code error;
  std::vector<Entry> entries;
  fs::directory_iterator at(directory, error);
  for (; !error && at != fs::directory_iterator(); at.increment(error)) {
    std::string name = at->path().filename().string();
    if (name.starts_with('.')) continue;
    if (entries.size() == kMaxDirectoryEntries)
      return InvalidArgument("{}: more than {} entries", directory.string(), kMaxDirectoryEntries);
    std::error_code ignored;  // a dangling link is a file that fails where it is wanted
    entries.push_back({std::move(name), at->is_directory(ignored)});
  }
  if (error) return ErrnoStatus(error.value(), directory.string());
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.name < b.name; });
  return entries;
}

// Names of the files of a directory and of the directories in it.
struct Listing {
  std::vector<std::string> files;   // "config.json"
  std::vector<std::string> nested;  // "1_Pooling/config.json"
};

absl::StatusOr<Listing> ListTwoLevels(const fs::path& directory) {
  Listing listing;
  ASSIGN_OR_RETURN(const std::vector<Entry> entries, List(directory));
  for (const Entry& entry : entries) {
    if (!entry.is_directory) {
      listing.files.push_back(entry.name);
      continue;
    }
    ASSIGN_OR_RETURN(const std::vector<Entry> inner, List(directory / entry.name));
    for (const Entry& file : inner)
      if (!file.is_directory) listing.nested.push_back(entry.name + "/" + file.name);
    if (listing.nested.size() > kMaxDirectoryEntries)
      return InvalidArgument("{}: more than {} entries", directory.string(), kMaxDirectoryEntries);
  }
  return listing;
}

// `prefix`*`suffix` in the last component.
std::vector<std::string> Match(const std::vector<std::string>& names, std::string_view prefix,
                               std::string_view suffix) {
  std::vector<std::string> matches;
  for (const std::string& name : names) {
    const std::string_view last = std::string_view(name).substr(name.rfind('/') + 1);
    if (last.size() >= prefix.size() + suffix.size() && last.starts_with(prefix) &&
        last.ends_with(suffix))
      matches.push_back(name);
  }
  return matches;
}

struct Pattern {
  const char* prefix;
  const char* suffix;
  bool pickle = false;
  bool nested = false;  // also one level down
};
// The first that matches wins.
constexpr Pattern kModelWeights[] = {
    {"model", ".safetensors", false, true},
    {"consolidated", ".safetensors"},
    {"pytorch_model", ".bin", true},
    {"consolidated", ".pth", true},
    {"", ".gguf"},
    {"", ".bin"},
    {"", ".pt", true},
    {"", ".pth", true},
    {"", ".ckpt", true},
};
constexpr Pattern kAdapterWeights[] = {
    {"adapter_model", ".safetensors"},
    {"adapters", ".safetensors"},
    {"", ".gguf"},
    {"adapter_model", ".bin", true},
};
constexpr Pattern kSmallFiles[] = {
    {"", ".json", false, true},
    {"", ".jinja"},
    {"tokenizer", ".model", false, true},
    {"", ".model"},
    {"merges", ".txt"},
    {"vocab", ".txt"},
    {"", ".tiktoken"},
};

std::vector<std::string> Match(const Listing& listing, const Pattern& pattern) {
  std::vector<std::string> names = Match(listing.files, pattern.prefix, pattern.suffix);
  if (pattern.nested) {
    const auto nested = Match(listing.nested, pattern.prefix, pattern.suffix);
    names.insert(names.end(), nested.begin(), nested.end());
  }
  return names;
}

absl::StatusOr<std::vector<std::string>> MatchWeights(const Listing& listing, Role role) {
  const std::span<const Pattern> patterns =
      role == Role::kAdapter ? std::span<const Pattern>(kAdapterWeights) : kModelWeights;
  for (const Pattern& pattern : patterns) {
    if (Match(listing.files, pattern.prefix, pattern.suffix).empty()) continue;
    const std::vector<std::string> names = Match(listing, pattern);
    if (pattern.pickle) return PickleError(names.front());
    return names;
  }
  return NotFound("no Modelfile or safetensors files found");
}

absl::StatusOr<std::vector<FoundFile>> Locate(const fs::path& directory,
                                              const std::vector<std::string>& names) {
  std::error_code error;
  const fs::path real_directory = fs::canonical(directory, error);
  if (error) return ErrnoStatus(error.value(), directory.string());
  std::vector<FoundFile> files;
  for (const std::string& name : names) {
    RETURN_IF_ERROR(CheckPath(name));
    ASSIGN_OR_RETURN(fs::path real, RegularFile(directory / name));
    const fs::path relative = real.lexically_relative(real_directory);
    if (relative.empty() || *relative.begin() == "..")
      return InvalidArgument("insecure path: {}", relative.string());
    files.push_back({std::move(real), name});
  }
  return files;
}

}  // namespace

absl::Status PickleError(const std::string& name) {
  return Unimplemented("{}: pickle weights are not supported yet; convert them to safetensors",
                       name);
}

absl::StatusOr<fs::path> ExpandPath(const std::string& value, const fs::path& modelfile_folder,
                                    const fs::path& context) {
  if (value.starts_with('~')) {
    const size_t slash = std::min(value.find('/'), value.size());
    ASSIGN_OR_RETURN(const std::string home, HomeOf(value.substr(1, slash - 1)));
    return fs::path(home + value.substr(slash));
  }
  if (value.starts_with('/')) return fs::path(value);
  const fs::path beside =
      modelfile_folder.empty() ? fs::path(".") / value : modelfile_folder / value;
  if (context.empty() || value.empty()) return beside;
  ASSIGN_OR_RETURN(const bool exists, Exists(beside));
  return exists ? beside : context / value;
}

absl::StatusOr<std::vector<FoundFile>> FindFile(const fs::path& path) {
  const std::string name = path.filename().string();
  RETURN_IF_ERROR(CheckPath(name));
  const std::optional<SplitName> split = ParseSplitName(name);
  std::vector<FoundFile> files;
  if (!split.has_value() || split->count <= 1) {
    ASSIGN_OR_RETURN(fs::path real, RegularFile(path));
    files.push_back({std::move(real), name});
    return files;
  }
  if (split->count > kMaxInputFiles)
    return InvalidArgument("{}: a set of {} files, more than the limit of {}", name, split->count,
                           kMaxInputFiles);
  for (uint64_t i = 1; i <= split->count; ++i) {
    std::string part = split->Part(i);
    absl::StatusOr<fs::path> real = RegularFile(path.parent_path() / part);
    if (!real.ok()) return Annotate(real.status(), fmt::format("part {} of {}", i, split->count));
    files.push_back({*std::move(real), std::move(part)});
  }
  return files;
}

absl::StatusOr<FoundModel> FindModel(const fs::path& directory, Role role) {
  FoundModel found;
  ASSIGN_OR_RETURN(const Listing listing, ListTwoLevels(directory));
  absl::StatusOr<std::vector<std::string>> weights = MatchWeights(listing, role);
  if (!weights.ok()) return Annotate(weights.status(), directory.string());
  std::vector<std::string> small;
  for (const Pattern& pattern : kSmallFiles)
    for (std::string& name : Match(listing, pattern)) small.push_back(std::move(name));
  std::sort(small.begin(), small.end());
  small.erase(std::unique(small.begin(), small.end()), small.end());
  std::set<std::string> taken(weights->begin(), weights->end());
  taken.insert(small.begin(), small.end());
  for (const std::string& name : listing.files)
    if (!taken.contains(name)) found.left_out.push_back(name);
  ASSIGN_OR_RETURN(found.weights, Locate(directory, *weights));
  ASSIGN_OR_RETURN(found.small, Locate(directory, small));
  return found;
}

}  // namespace kapsule::model
