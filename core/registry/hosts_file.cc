// hosts.toml.
#include <toml++/toml.h>

#include <algorithm>
#include <new>

#include "core/base/printable.h"
#include "core/registry/durations.h"
#include "core/registry/hosts.h"
#include "core/registry/hosts_default.h"

namespace kapsule::registry {
namespace fs = std::filesystem;
namespace {

constexpr size_t kMaxHosts = 32, kMaxList = 32;
constexpr size_t kMaxHeaderBytes = 8 * 1024;

// A table of the file and where it stands, for messages.
struct Place {
  const toml::table& table;
  std::string name;  // "host.\"https://…\"", empty for the root
  const fs::path& folder;

  std::string KeyName(std::string_view key) const {
    return Printable(name.empty() ? std::string(key) : name + "." + std::string(key));
  }
  absl::Status Wrong(std::string_view key, std::string_view what) const {
    const toml::node* node = table.get(key);
    return InvalidArgument("line {}: {} {}", node == nullptr ? 0 : node->source().begin.line,
                           KeyName(key), what);
  }
};

// Without a user and a query, which may hold a password.
std::string UrlToShow(std::string url) {
  url = url.substr(0, url.find_first_of("?#"));
  const size_t at = url.rfind('@'), scheme = url.find("://");
  if (at == std::string::npos) return url;
  return (scheme < at ? url.substr(0, scheme + 3) : "") + "…" + url.substr(at);
}

using Texts = std::vector<std::string>;

// A list of strings.
absl::StatusOr<Texts> List(const Place& place, std::string_view key, const toml::array& array) {
  if (array.size() > kMaxList) return place.Wrong(key, "has too many entries");
  Texts texts;
  for (const toml::node& entry : array) {
    const std::optional<std::string> text = entry.value_exact<std::string>();
    if (!text) return place.Wrong(key, "must hold strings only");
    texts.push_back(*text);
  }
  return texts;
}

// A string or a list of strings; empty where `key` is missing.
absl::StatusOr<Texts> OneOrMore(const Place& place, std::string_view key) {
  const toml::node* node = place.table.get(key);
  if (node == nullptr) return Texts();
  if (const auto text = node->value_exact<std::string>()) return Texts{*text};
  if (const toml::array* array = node->as_array()) return List(place, key, *array);
  return place.Wrong(key, "must be a string or a list of strings");
}

absl::StatusOr<bool> Flag(const Place& place, std::string_view key) {
  const toml::node* node = place.table.get(key);
  if (node == nullptr) return false;
  if (const auto flag = node->value_exact<bool>()) return *flag;
  return place.Wrong(key, "must be true or false");
}

absl::Status ReadCapabilities(const Place& place, Host* host) {
  const toml::node* node = place.table.get("capabilities");
  if (node == nullptr) return absl::OkStatus();
  const toml::array* array = node->as_array();
  if (array == nullptr) return place.Wrong("capabilities", "must be a list of strings");
  ASSIGN_OR_RETURN(const Texts words, List(place, "capabilities", *array));
  if (words.empty()) return absl::OkStatus();
  host->pull = host->resolve = host->push = false;
  for (std::string word : words) {
    std::transform(word.begin(), word.end(), word.begin(), tolower);
    if (word == "pull")
      host->pull = true;
    else if (word == "resolve")
      host->resolve = true;
    else if (word == "push")
      host->push = true;
    else
      return place.Wrong("capabilities",
                         "has \"" + Printable(word) + "\" in it, not one of pull, resolve, push");
  }
  return absl::OkStatus();
}

absl::Status ReadAuthorities(const Place& place, Host* host) {
  ASSIGN_OR_RETURN(const Texts files, OneOrMore(place, "ca"));
  for (const std::string& file : files) host->authorities.push_back(place.folder / file);
  return absl::OkStatus();
}

// "file", ["file", …] or [["certificate", "key"], …].
absl::Status ReadClient(const Place& place, Host* host) {
  const toml::node* node = place.table.get("client");
  const toml::array* array = node == nullptr ? nullptr : node->as_array();
  const bool pairs = array != nullptr && std::any_of(array->begin(), array->end(),
                                                     [](const auto& e) { return e.is_array(); });
  if (!pairs) {
    ASSIGN_OR_RETURN(const Texts files, OneOrMore(place, "client"));
    for (const std::string& file : files)
      host->client_certificates.push_back({place.folder / file, {}});
    return absl::OkStatus();
  }
  if (array->size() > kMaxList) return place.Wrong("client", "has too many entries");
  for (const toml::node& entry : *array) {
    if (const auto file = entry.value_exact<std::string>()) {
      host->client_certificates.push_back({place.folder / *file, {}});
      continue;
    }
    const toml::array* pair = entry.as_array();
    if (pair == nullptr) return place.Wrong("client", "must hold files or pairs of files");
    ASSIGN_OR_RETURN(const Texts files, List(place, "client", *pair));
    if (files.size() != 2) return place.Wrong("client", "has a pair that is not of two files");
    host->client_certificates.push_back({place.folder / files[0], place.folder / files[1]});
  }
  return absl::OkStatus();
}

bool CanBeHeader(std::string_view name, std::string_view value) {
  const auto is_name = [](unsigned char c) { return c > ' ' && c < 0x7f && c != ':'; };
  const auto is_value = [](unsigned char c) { return c >= ' ' && c != 0x7f; };
  return !name.empty() && name.size() + value.size() <= kMaxHeaderBytes &&
         std::all_of(name.begin(), name.end(), is_name) &&
         std::all_of(value.begin(), value.end(), is_value);
}

absl::Status ReadHeaders(const Place& place, Host* host) {
  const toml::node* node = place.table.get("header");
  if (node == nullptr) return absl::OkStatus();
  const toml::table* table = node->as_table();
  if (table == nullptr) return place.Wrong("header", "must be a table");
  if (table->size() > kMaxList) return place.Wrong("header", "has too many entries");
  const Place headers{*table, place.KeyName("header"), place.folder};
  for (const auto& [key, value] : *table) {
    ASSIGN_OR_RETURN(const Texts texts, OneOrMore(headers, key.str()));
    for (const std::string& text : texts) {
      if (!CanBeHeader(key.str(), text)) return headers.Wrong(key.str(), "cannot be sent");
      host->headers.Add(std::string(key.str()), text);
    }
  }
  return absl::OkStatus();
}

absl::Status ReadTimeout(const Place& place, Host* host) {
  const toml::node* node = place.table.get("dial_timeout");
  if (node == nullptr) return absl::OkStatus();
  const auto text = node->value_exact<std::string>();
  const auto timeout = text ? ParseGoDuration(*text) : InvalidArgument("no string");
  if (!timeout.ok() || timeout->count() <= 0)
    return place.Wrong("dial_timeout", "must be a duration, as \"10s\"");
  host->connect_timeout = *timeout;
  return absl::OkStatus();
}

// What stands in one table. `server` is empty for a root that names none: it
// speaks of the registry itself.
absl::StatusOr<Host> ReadHost(const Place& place, const std::string& server,
                              const std::string& registry) {
  Host host;
  ASSIGN_OR_RETURN(const bool override_path, Flag(place, "override_path"));
  if (server.empty()) {
    host = DefaultHost(registry);
  } else {
    const absl::StatusOr<std::string> url = ApiRoot(server, override_path);
    if (!url.ok())
      return Annotate(url.status(), Printable(place.name.empty() ? "server" : place.name));
    host.url = *url;
    host.name = HostOfUrl(*url);
  }
  RETURN_IF_ERROR(ReadCapabilities(place, &host));
  // containerd gives the registry itself, without a url, every capability.
  if (server.empty()) host.pull = host.resolve = host.push = true;
  ASSIGN_OR_RETURN(const bool skip_verify, Flag(place, "skip_verify"));
  host.skip_verify = host.skip_verify || skip_verify;
  RETURN_IF_ERROR(ReadAuthorities(place, &host));
  RETURN_IF_ERROR(ReadClient(place, &host));
  RETURN_IF_ERROR(ReadHeaders(place, &host));
  RETURN_IF_ERROR(ReadTimeout(place, &host));
  return host;
}

struct Entry {
  std::string url;
  const toml::table* table;
  toml::source_position position;
};

// The tables of [host], in the order of the file.
absl::StatusOr<std::vector<Entry>> HostTables(const Place& root) {
  std::vector<Entry> entries;
  const toml::node* node = root.table.get("host");
  if (node == nullptr) return entries;
  const toml::table* hosts = node->as_table();
  if (hosts == nullptr) return root.Wrong("host", "must be a table");
  if (hosts->size() > kMaxHosts) return root.Wrong("host", "has too many entries");
  for (const auto& [key, value] : *hosts) {
    const toml::table* table = value.as_table();
    if (table == nullptr)
      return root.Wrong("host", "has \"" + Printable(UrlToShow(std::string(key.str()))) +
                                    "\" in it, which is no table");
    entries.push_back({std::string(key.str()), table, key.source().begin});
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.position < b.position; });
  return entries;
}

absl::StatusOr<std::vector<Host>> ReadTable(const toml::table& table, const fs::path& folder,
                                            const std::string& registry) {
  const Place root{table, "", folder};
  std::string server;
  if (const toml::node* node = table.get("server")) {
    const auto text = node->value_exact<std::string>();
    if (!text) return root.Wrong("server", "must be a string");
    server = *text;
  }
  ASSIGN_OR_RETURN(const std::vector<Entry> entries, HostTables(root));
  std::vector<Host> hosts;
  for (const Entry& entry : entries) {
    const Place place{*entry.table, "host.\"" + UrlToShow(entry.url) + "\"", folder};
    if (entry.url.empty()) return root.Wrong("host", "has an entry without a url");
    ASSIGN_OR_RETURN(Host host, ReadHost(place, entry.url, registry));
    hosts.push_back(std::move(host));
  }
  ASSIGN_OR_RETURN(Host host, ReadHost(root, server, registry));
  hosts.push_back(std::move(host));
  return hosts;
}

}  // namespace

absl::StatusOr<std::vector<Host>> ParseHosts(const std::string& text, const fs::path& folder,
                                             const std::string& host) {
  try {
    const toml::table table = toml::parse(text);
    return ReadTable(table, folder, host);
  } catch (const toml::parse_error& error) {
    return InvalidArgument("line {}: {}", error.source().begin.line,
                           Printable(error.description()));
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("no memory for it");
  }
}

}  // namespace kapsule::registry
