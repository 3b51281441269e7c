#include "kapsule-ctl/node_settings.h"

#include <toml++/toml.h>

#include "core/base/file.h"

namespace kapsule::ctl {
namespace {

constexpr uint64_t kMaxFileBytes = 1 << 20;

struct Field {
  const char* key;
  std::string NodeSettings::*member;
};
constexpr Field kFields[] = {
    {"root", &NodeSettings::root},
    {"address", &NodeSettings::address},
    {"snapshotter_name", &NodeSettings::snapshotter_name},
    {"containerd_address", &NodeSettings::containerd_address},
    {"content_root", &NodeSettings::content_root},
    {"keyprovider_socket", &NodeSettings::keyprovider_socket},
    {"fuse_user", &NodeSettings::fuse_user},
    {"view_mount", &NodeSettings::view_mount},
};

}  // namespace

absl::StatusOr<NodeSettings> LoadNodeSettings(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  toml::table table;
  try {
    table = toml::parse(text);
  } catch (const toml::parse_error& error) {
    return InvalidArgument("{}:{}: {}", path.string(), error.source().begin.line,
                           error.description());
  }
  NodeSettings settings;
  for (const Field& field : kFields) {
    const toml::node* value = table.get(field.key);
    if (value == nullptr) continue;
    const std::optional<std::string> word = value->value_exact<std::string>();
    if (!word)
      return InvalidArgument("{}:{}: {} must be a string", path.string(),
                             value->source().begin.line, field.key);
    settings.*field.member = *word;
  }
  return settings;
}

}  // namespace kapsule::ctl
