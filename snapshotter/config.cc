#include "snapshotter/config.h"

#include <toml++/toml.h>

#include <map>
#include <variant>

#include "core/base/file.h"

namespace kapsule::snapshotter {
namespace {

constexpr uint64_t kMaxFileBytes = 1 << 20;
constexpr int kMaxTimeoutMs = 600'000;
constexpr size_t kMaxRootBytes = 1024;
constexpr size_t kMaxSocketBytes = 107;

using Field = std::variant<std::filesystem::path Config::*, std::string Config::*, int Config::*>;

const std::map<std::string_view, Field>& Fields() {
  static const auto* const fields = new std::map<std::string_view, Field>{
      {"root", &Config::root},
      {"address", &Config::address},
      {"snapshotter_name", &Config::snapshotter_name},
      {"containerd_address", &Config::containerd_address},
      {"content_root", &Config::content_root},
      {"keyprovider_socket", &Config::keyprovider_socket},
      {"fuse_program", &Config::fuse_program},
      {"fuse_user", &Config::fuse_user},
      {"open_timeout_ms", &Config::open_timeout_ms},
      {"lookup_timeout_ms", &Config::lookup_timeout_ms},
      {"log_level", &Config::log_level},
  };
  return *fields;
}

// False where the value is of another type.
bool Set(Config& config, const Field& field, const toml::node& value) {
  if (const auto* number = std::get_if<int Config::*>(&field)) {
    if (!value.is_integer()) return false;
    const int64_t wide = *value.value<int64_t>();
    if (wide < INT_MIN || wide > INT_MAX) return false;
    config.** number = static_cast<int>(wide);
    return true;
  }
  if (!value.is_string()) return false;
  const std::string text = *value.value<std::string>();
  if (const auto* path = std::get_if<std::filesystem::path Config::*>(&field))
    config.** path = text;
  else
    config.*std::get<std::string Config::*>(field) = text;
  return true;
}

absl::Status CheckPath(const char* name, const std::filesystem::path& path, size_t max) {
  const std::string& text = path.native();
  if (!path.is_absolute() || path.lexically_normal().native() != text)
    return InvalidArgument("{} \"{}\" is not an absolute path without \".\" and \"//\"", name,
                           text);
  if (text.size() > max) return InvalidArgument("{} is longer than {} bytes: {}", name, max, text);
  return absl::OkStatus();
}

absl::Status CheckTimeout(const char* name, int ms) {
  if (ms < 1 || ms > kMaxTimeoutMs)
    return InvalidArgument("{} is {}, not 1 to {}", name, ms, kMaxTimeoutMs);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Config> LoadConfig(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  toml::table table;
  try {
    table = toml::parse(text);
  } catch (const toml::parse_error& error) {
    return InvalidArgument("{}:{}: {}", path.string(), error.source().begin.line,
                           error.description());
  }
  Config config;
  for (const auto& [key, value] : table) {
    const auto field = Fields().find(key.str());
    if (field == Fields().end())
      return InvalidArgument("{}:{}: unknown key \"{}\"", path.string(), key.source().begin.line,
                             key.str());
    if (!Set(config, field->second, value))
      return InvalidArgument(
          "{}:{}: {} must be a {}", path.string(), key.source().begin.line, key.str(),
          std::holds_alternative<int Config::*>(field->second) ? "number" : "string");
  }
  return config;
}

absl::Status CheckConfig(const Config& config) {
  RETURN_IF_ERROR(CheckPath("root", config.root, kMaxRootBytes));
  // These separate the options of an overlay mount, and its lower directories.
  if (config.root.native().find_first_of(":,\\\"") != std::string::npos)
    return InvalidArgument(
        "root \"{}\" has one of : , \\ \" in it, which overlayfs mounts do not"
        " take",
        config.root.native());
  RETURN_IF_ERROR(CheckPath("address", config.address, kMaxSocketBytes));
  RETURN_IF_ERROR(CheckPath("containerd_address", config.containerd_address, kMaxSocketBytes));
  RETURN_IF_ERROR(CheckPath("content_root", config.content_root, kMaxRootBytes));
  RETURN_IF_ERROR(CheckPath("keyprovider_socket", config.keyprovider_socket, kMaxSocketBytes));
  if (config.snapshotter_name.empty()) return InvalidArgument("snapshotter_name is empty");
  if (config.fuse_user.empty()) return InvalidArgument("fuse_user is empty");
  RETURN_IF_ERROR(CheckTimeout("open_timeout_ms", config.open_timeout_ms));
  return CheckTimeout("lookup_timeout_ms", config.lookup_timeout_ms);
}

}  // namespace kapsule::snapshotter
