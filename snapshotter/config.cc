#include "snapshotter/config.h"

#include <toml++/toml.h>

#include <map>
#include <variant>

#include "core/base/file.h"
#include "core/mounts/erofs_mount.h"
#include "snapshotter/http_listener.h"

namespace kapsule::snapshotter {
namespace {

constexpr uint64_t kMaxFileBytes = 1 << 20;
constexpr int64_t kMaxTimeoutMs = 600'000, kMaxGraceMs = 86'400'000;
constexpr int64_t kMinStuckMs = 1'000, kMinAbandonMs = 1'000;
constexpr int64_t kMaxThreads = 64;
constexpr int64_t kMaxCacheBytes = int64_t{1} << 40;
// Four blocks of one stream; a chunk of each reading thread; some pages.
constexpr int64_t kMinReadAhead = 8 << 20, kMinChunkCache = 4 << 20, kMinIndexCache = 1 << 20;
constexpr int64_t kMinFetchCache = 64 << 20, kMaxFetchCache = int64_t{1} << 60;
constexpr int64_t kMinFetchTimeoutMs = 100;
constexpr size_t kMaxRootBytes = 95;  // a socket stands in it
constexpr size_t kMaxFolderBytes = 1024;
constexpr size_t kMaxSocketBytes = 107;

using List = std::vector<std::string>;
using Field = std::variant<std::filesystem::path Config::*, std::string Config::*,
                           int64_t Config::*, List Config::*, bool Config::*>;

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
      {"view_mount", &Config::view_mount},
      {"open_timeout_ms", &Config::open_timeout_ms},
      {"lookup_timeout_ms", &Config::lookup_timeout_ms},
      {"key_grace_ms", &Config::key_grace_ms},
      {"upgrade_timeout_ms", &Config::upgrade_timeout_ms},
      {"stuck_after_ms", &Config::stuck_after_ms},
      {"abandon_after_ms", &Config::abandon_after_ms},
      {"workers", &Config::workers},
      {"io_threads", &Config::io_threads},
      {"read_ahead_bytes", &Config::read_ahead_bytes},
      {"chunk_cache_bytes", &Config::chunk_cache_bytes},
      {"index_cache_bytes", &Config::index_cache_bytes},
      {"fetch_program", &Config::fetch_program},
      {"fetch_user", &Config::fetch_user},
      {"fetch_cache", &Config::fetch_cache},
      {"fetch_cache_bytes", &Config::fetch_cache_bytes},
      {"fetch_fill", &Config::fetch_fill},
      {"fetch_connections", &Config::fetch_connections},
      {"fetch_timeout_ms", &Config::fetch_timeout_ms},
      {"fetch_grace_ms", &Config::fetch_grace_ms},
      {"hosts_dir", &Config::hosts_dir},
      {"credential_provider_config", &Config::credential_provider_config},
      {"credential_provider_bin_dir", &Config::credential_provider_bin_dir},
      {"pull_secrets", &Config::pull_secrets},
      {"docker_configs", &Config::docker_configs},
      {"cri_image_socket", &Config::cri_image_socket},
      {"metrics_address", &Config::metrics_address},
      {"metrics_allow_remote", &Config::metrics_allow_remote},
      {"log_level", &Config::log_level},
  };
  return *fields;
}

const char* TypeOf(const Field& field) {
  if (std::holds_alternative<int64_t Config::*>(field)) return "a number";
  if (std::holds_alternative<bool Config::*>(field)) return "true or false";
  return std::holds_alternative<List Config::*>(field) ? "a list of strings" : "a string";
}

// False where the value is of another type.
bool SetList(List& list, const toml::node& value) {
  if (!value.is_array()) return false;
  list.clear();
  for (const toml::node& element : *value.as_array()) {
    if (!element.is_string()) return false;
    list.push_back(*element.value<std::string>());
  }
  return true;
}

// False where the value is of another type.
bool Set(Config& config, const Field& field, const toml::node& value) {
  if (const auto* number = std::get_if<int64_t Config::*>(&field)) {
    if (!value.is_integer()) return false;
    config.** number = *value.value<int64_t>();
    return true;
  }
  if (const auto* truth = std::get_if<bool Config::*>(&field)) {
    if (!value.is_boolean()) return false;
    config.** truth = *value.value<bool>();
    return true;
  }
  if (const auto* list = std::get_if<List Config::*>(&field)) return SetList(config.**list, value);
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

absl::Status CheckNumber(const char* name, int64_t number, int64_t min, int64_t max) {
  if (number < min || number > max)
    return InvalidArgument("{} is {}, not {} to {}", name, number, min, max);
  return absl::OkStatus();
}

absl::Status CheckMemory(const char* name, int64_t bytes, int64_t min) {
  if (bytes < min)
    return InvalidArgument("{} is {}: that memory limit is too small, it takes at least {}", name,
                           bytes, min);
  return CheckNumber(name, bytes, min, kMaxCacheBytes);
}

absl::Status CheckDataPlane(const Config& config) {
  RETURN_IF_ERROR(ParseViewMount(config.view_mount).status());
  RETURN_IF_ERROR(CheckNumber("key_grace_ms", config.key_grace_ms, 0, kMaxGraceMs));
  RETURN_IF_ERROR(CheckNumber("upgrade_timeout_ms", config.upgrade_timeout_ms, 1, kMaxTimeoutMs));
  if (config.stuck_after_ms != 0)
    RETURN_IF_ERROR(
        CheckNumber("stuck_after_ms", config.stuck_after_ms, kMinStuckMs, kMaxTimeoutMs));
  if (config.abandon_after_ms != 0)
    RETURN_IF_ERROR(
        CheckNumber("abandon_after_ms", config.abandon_after_ms, kMinAbandonMs, kMaxGraceMs));
  RETURN_IF_ERROR(CheckNumber("workers", config.workers, 0, kMaxThreads));
  RETURN_IF_ERROR(CheckNumber("io_threads", config.io_threads, 1, kMaxThreads));
  RETURN_IF_ERROR(CheckMemory("read_ahead_bytes", config.read_ahead_bytes, kMinReadAhead));
  RETURN_IF_ERROR(CheckMemory("chunk_cache_bytes", config.chunk_cache_bytes, kMinChunkCache));
  return CheckMemory("index_cache_bytes", config.index_cache_bytes, kMinIndexCache);
}

absl::Status CheckFetch(const Config& config) {
  if (config.fetch_user.empty()) return InvalidArgument("fetch_user is empty");
  RETURN_IF_ERROR(CheckPath("fetch_cache", config.fetch_cache, kMaxFolderBytes));
  RETURN_IF_ERROR(
      CheckNumber("fetch_cache_bytes", config.fetch_cache_bytes, kMinFetchCache, kMaxFetchCache));
  if (config.fetch_fill != "off" && config.fetch_fill != "idle" && config.fetch_fill != "eager")
    return InvalidArgument("fetch_fill is \"{}\", not off, idle or eager", config.fetch_fill);
  RETURN_IF_ERROR(CheckNumber("fetch_connections", config.fetch_connections, 1, kMaxThreads));
  RETURN_IF_ERROR(
      CheckNumber("fetch_timeout_ms", config.fetch_timeout_ms, kMinFetchTimeoutMs, kMaxGraceMs));
  RETURN_IF_ERROR(CheckNumber("fetch_grace_ms", config.fetch_grace_ms, 0, kMaxGraceMs));
  if (config.credential_provider_config.empty() != config.credential_provider_bin_dir.empty())
    return InvalidArgument(
        "credential_provider_config and credential_provider_bin_dir: one without the other");
  if (config.cri_image_socket.empty()) return absl::OkStatus();
  return CheckPath("cri_image_socket", config.cri_image_socket, kMaxSocketBytes);
}

}  // namespace

std::vector<std::string> ConfigKeys() {
  std::vector<std::string> keys;
  for (const auto& [key, field] : Fields()) keys.emplace_back(key);
  return keys;
}

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
      return InvalidArgument("{}:{}: {} must be {}", path.string(), key.source().begin.line,
                             key.str(), TypeOf(field->second));
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
  RETURN_IF_ERROR(CheckPath("content_root", config.content_root, kMaxFolderBytes));
  RETURN_IF_ERROR(CheckPath("keyprovider_socket", config.keyprovider_socket, kMaxSocketBytes));
  if (config.snapshotter_name.empty()) return InvalidArgument("snapshotter_name is empty");
  if (config.fuse_user.empty()) return InvalidArgument("fuse_user is empty");
  RETURN_IF_ERROR(CheckNumber("open_timeout_ms", config.open_timeout_ms, 1, kMaxTimeoutMs));
  RETURN_IF_ERROR(CheckNumber("lookup_timeout_ms", config.lookup_timeout_ms, 1, kMaxTimeoutMs));
  RETURN_IF_ERROR(CheckFetch(config));
  if (!config.metrics_address.empty()) {
    const absl::Status status =
        ParseListenAddress(config.metrics_address, config.metrics_allow_remote).status();
    if (absl::IsPermissionDenied(status))
      return InvalidArgument("metrics_address: {} (metrics_allow_remote = true allows it)",
                             Message(status));
    RETURN_IF_ERROR(Annotate(status, "metrics_address"));
  }
  return CheckDataPlane(config);
}

}  // namespace kapsule::snapshotter
