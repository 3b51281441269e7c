#include "kapsule-ctl/node_settings.h"

#include <toml++/toml.h>

#include <optional>
#include <variant>

#include "core/base/file.h"

namespace kapsule::ctl {
namespace {

constexpr uint64_t kMaxFileBytes = 1 << 20;

struct Field {
  const char* key;
  std::variant<std::string NodeSettings::*, int64_t NodeSettings::*> member;
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
    {"fetch_user", &NodeSettings::fetch_user},
    {"fetch_cache", &NodeSettings::fetch_cache},
    {"fetch_cache_bytes", &NodeSettings::fetch_cache_bytes},
    {"hosts_dir", &NodeSettings::hosts_dir},
};

// False where the value is of another type.
template <typename T>
bool Set(NodeSettings& settings, T NodeSettings::*member, const toml::node& value) {
  const std::optional<T> found = value.value_exact<T>();
  if (found) settings.*member = *found;
  return found.has_value();
}

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
    if (!std::visit([&](auto member) { return Set(settings, member, *value); }, field.member))
      return InvalidArgument("{}:{}: {} must be a {}", path.string(), value->source().begin.line,
                             field.key, field.member.index() == 0 ? "string" : "number");
  }
  return settings;
}

}  // namespace kapsule::ctl
