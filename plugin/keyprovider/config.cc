#include "plugin/keyprovider/config.h"

#include <toml++/toml.h>

#include <optional>
#include <sstream>

#include "core/base/file.h"

namespace kapsule::keyprovider {
namespace {

constexpr uint64_t kMaxConfig = 64 * 1024;

// A user by name or number.
std::optional<std::string> UserOf(const toml::node& node) {
  if (const auto number = node.value_exact<int64_t>()) return std::to_string(*number);
  return node.value_exact<std::string>();
}

std::optional<std::vector<std::string>> UsersOf(const toml::node& node) {
  std::vector<std::string> users;
  if (const toml::array* array = node.as_array()) {
    for (const toml::node& element : *array) {
      const std::optional<std::string> user = UserOf(element);
      if (!user) return std::nullopt;
      users.push_back(*user);
    }
    return users;
  }
  const std::optional<std::string> user = UserOf(node);
  if (!user) return std::nullopt;
  return std::vector<std::string>{*user};
}

absl::Status Set(std::string_view key, const toml::node& node, Config& config) {
  const std::optional<std::string> text = node.value_exact<std::string>();
  if (key == "allow-uid") {
    const std::optional<std::vector<std::string>> users = UsersOf(node);
    if (!users) return InvalidArgument("allow-uid is not a list of users");
    config.allow_uid = *users;
    return absl::OkStatus();
  }
  if (key != "keys" && key != "address" && key != "grpc-address" && key != "log-level")
    return InvalidArgument("unknown key \"{}\"", key);
  if (!text) return InvalidArgument("{} is not a string", key);
  if (key == "keys") config.keys = *text;
  if (key == "address") config.address = *text;
  if (key == "grpc-address") config.grpc_address = *text;
  if (key == "log-level") config.log_level = *text;
  return absl::OkStatus();
}

absl::StatusOr<toml::table> ParseToml(const std::string& text, const std::string& name) {
  try {
    return toml::parse(text, name);
  } catch (const toml::parse_error& error) {
    return InvalidArgument("{}:{}: {}", name, error.source().begin.line, error.description());
  }
}

}  // namespace

absl::StatusOr<Config> LoadConfig(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfig));
  ASSIGN_OR_RETURN(const toml::table table, ParseToml(text, path.string()));
  Config config;
  for (const auto& [key, node] : table) {
    const absl::Status set = Set(key.str(), node, config);
    if (!set.ok())
      return Annotate(set, fmt::format("{}:{}", path.string(), key.source().begin.line));
  }
  return config;
}

}  // namespace kapsule::keyprovider
