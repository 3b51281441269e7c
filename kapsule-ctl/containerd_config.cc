#include "kapsule-ctl/containerd_config.h"

#include <glob.h>
#include <toml++/toml.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <vector>

#include "core/base/file.h"

namespace kapsule::ctl {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxFileBytes = 1 << 20;
constexpr size_t kMaxFiles = 100;
constexpr char kOldCri[] = "io.containerd.grpc.v1.cri", kNewCri[] = "io.containerd.cri.v1.images",
               kTransfer[] = "io.containerd.transfer.v1.local",
               kDiffService[] = "io.containerd.service.v1.diff-service";

absl::StatusOr<toml::table> Parse(const fs::path& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  try {
    return toml::parse(text);
  } catch (const toml::parse_error& error) {
    return InvalidArgument("{}:{}: {}", path.string(), error.source().begin.line,
                           error.description());
  }
}

void AddMatches(const fs::path& pattern, std::deque<fs::path>& files) {
  glob_t found;
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0)
    for (size_t i = 0; i < found.gl_pathc; ++i) files.emplace_back(found.gl_pathv[i]);
  globfree(&found);
}

void AddImports(const toml::table& table, const fs::path& parent, std::deque<fs::path>& files) {
  const toml::array* const imports = table["imports"].as_array();
  if (imports == nullptr) return;
  for (const toml::node& node : *imports) {
    const fs::path path = parent.parent_path() / node.value_or(std::string());
    if (path.native().find('*') != std::string::npos)
      AddMatches(path, files);
    else
      files.push_back(path.lexically_normal());
  }
}

// A value of `from` replaces that of `to`; of these sections, entry by entry.
void Merge(toml::table& to, const toml::table& from) {
  for (const auto& [key, value] : from) {
    const bool by_entry = key == "plugins" || key == "proxy_plugins";
    if (!by_entry || !value.is_table() || to[key].as_table() == nullptr) {
      to.insert_or_assign(key, value);
      continue;
    }
    for (const auto& [name, entry] : *value.as_table())
      to[key].as_table()->insert_or_assign(name, entry);
  }
}

absl::StatusOr<toml::table> LoadAll(const fs::path& path) {
  toml::table all;
  std::set<fs::path> loaded;
  for (std::deque<fs::path> files = {path}; !files.empty(); files.pop_front()) {
    const fs::path file = files.front();
    if (!loaded.insert(file).second) continue;
    if (loaded.size() > kMaxFiles)
      return InvalidArgument("{}: more than {} imports", path.string(), kMaxFiles);
    absl::StatusOr<toml::table> table = Parse(file);
    if (!table.ok())
      return file == path ? table.status()
                          : Annotate(table.status(), "imported by " + path.string());
    AddImports(*table, file, files);
    if (file != path) table->erase("version");
    Merge(all, *table);
  }
  return all;
}

std::optional<bool> Truth(toml::node_view<const toml::node> node) { return node.value<bool>(); }
std::optional<std::string> Text(toml::node_view<const toml::node> node) {
  return node.value<std::string>();
}

std::vector<std::string> Texts(const toml::array* array) {
  std::vector<std::string> texts;
  if (array == nullptr) return texts;
  for (const toml::node& node : *array) texts.push_back(node.value_or(std::string()));
  return texts;
}

// `section` has the names of runtimes as keys, each with a snapshotter.
std::set<std::string> RuntimesWith(toml::node_view<const toml::node> section,
                                   const std::string& snapshotter) {
  std::set<std::string> names;
  const toml::table* const runtimes = section.as_table();
  if (runtimes == nullptr) return names;
  for (const auto& [name, runtime] : *runtimes) {
    const toml::table* const settings = runtime.as_table();
    if (settings != nullptr && Text((*settings)["snapshotter"]) == snapshotter)
      names.insert(std::string(name.str()));
  }
  return names;
}

void TakeOldCri(const toml::table& all, const std::string& snapshotter, ContainerdConfig& config) {
  auto cri = all["plugins"][kOldCri];
  if (!cri && config.version < 2) cri = all["plugins"]["cri"];
  const auto section = cri["containerd"];
  config.old_cri = {.snapshotter = Text(section["snapshotter"]),
                    .disable_annotations = Truth(section["disable_snapshot_annotations"]),
                    .local_pull = std::nullopt,
                    .runtimes = RuntimesWith(section["runtimes"], snapshotter)};
  config.old_cri_has_runtimes = section["runtimes"].is_table();
}

void TakeNewCri(const toml::table& all, const std::string& snapshotter, ContainerdConfig& config) {
  const auto section = all["plugins"][kNewCri];
  config.new_cri = {.snapshotter = Text(section["snapshotter"]),
                    .disable_annotations = Truth(section["disable_snapshot_annotations"]),
                    .local_pull = Truth(section["use_local_image_pull"]),
                    .runtimes = RuntimesWith(section["runtime_platforms"], snapshotter)};
}

void TakeProxies(const toml::table& all, ContainerdConfig& config) {
  const toml::table* const proxies = all["proxy_plugins"].as_table();
  if (proxies == nullptr) return;
  for (const auto& [name, node] : *proxies) {
    const toml::table* const entry = node.as_table();
    if (entry == nullptr) continue;
    ContainerdConfig::Proxy& proxy = config.proxies[std::string(name.str())];
    proxy.type = Text((*entry)["type"]).value_or("");
    proxy.address = Text((*entry)["address"]).value_or("");
    for (std::string& capability : Texts((*entry)["capabilities"].as_array()))
      proxy.capabilities.insert(std::move(capability));
    const toml::table* const exports = (*entry)["exports"].as_table();
    if (exports == nullptr) continue;
    for (const auto& [key, value] : *exports)
      proxy.exports[std::string(key.str())] = value.value_or(std::string());
  }
}

void TakeUnpacked(const toml::table& all, ContainerdConfig& config) {
  const toml::array* const entries = all["plugins"][kTransfer]["unpack_config"].as_array();
  if (entries == nullptr) return;
  for (const toml::node& node : *entries) {
    const toml::table* const entry = node.as_table();
    if (entry == nullptr) continue;
    // Of several for one snapshotter containerd takes the first.
    config.unpacked.emplace(Text((*entry)["snapshotter"]).value_or(""),
                            Text((*entry)["differ"]).value_or(""));
  }
}

void TakeDiffers(const toml::table& all, ContainerdConfig& config) {
  const toml::array* const order = all["plugins"][kDiffService]["default"].as_array();
  if (order != nullptr) config.differs = Texts(order);
}

bool Disables(const toml::table& all, std::string_view plugin) {
  const std::vector<std::string> disabled = Texts(all["disabled_plugins"].as_array());
  return std::find(disabled.begin(), disabled.end(), plugin) != disabled.end();
}

}  // namespace

std::optional<ContainerdVersion> ContainerdVersion::Parse(const std::string& text) {
  ContainerdVersion version;
  const char* const number = text.c_str() + (text.starts_with('v') ? 1 : 0);
  if (std::sscanf(number, "%d.%d.%d", &version.major, &version.minor, &version.patch) < 2)
    return std::nullopt;
  return version;
}

CriImageSettings ContainerdConfig::CriFor(const ContainerdVersion& containerd) const {
  if (containerd.major < 2) return old_cri;
  CriImageSettings cri = new_cri;
  if (version >= 3 || !old_cri_has_runtimes) return cri;
  if (old_cri.snapshotter) cri.snapshotter = old_cri.snapshotter;
  if (old_cri.disable_annotations) cri.disable_annotations = old_cri.disable_annotations;
  cri.runtimes.insert(old_cri.runtimes.begin(), old_cri.runtimes.end());
  return cri;
}

absl::StatusOr<ContainerdConfig> LoadContainerdConfig(const fs::path& path,
                                                      const std::string& snapshotter) {
  ASSIGN_OR_RETURN(const toml::table all, LoadAll(path));
  ContainerdConfig config;
  config.path = path;
  config.version = all["version"].value_or(int64_t{1});
  config.root = all["root"].value_or(config.root.string());
  config.cri_disabled = Disables(all, kOldCri) || Disables(all, kNewCri);
  TakeProxies(all, config);
  TakeUnpacked(all, config);
  TakeDiffers(all, config);
  TakeOldCri(all, snapshotter, config);
  TakeNewCri(all, snapshotter, config);
  return config;
}

}  // namespace kapsule::ctl
