#include "core/registry/hosts.h"

#include <arpa/inet.h>

#include <algorithm>

#include "core/base/file.h"
#include "core/base/printable.h"
#include "core/http/url.h"
#include "core/registry/hosts_default.h"

namespace kapsule::registry {
namespace fs = std::filesystem;
namespace {

constexpr uint64_t kMaxFileBytes = 256 * 1024;
constexpr size_t kMaxHostBytes = 255;
constexpr size_t kMaxCertificates = 32;

struct HostPort {
  std::string host, port;  // without brackets
};

HostPort Split(const std::string& name) {
  const size_t colon = name.rfind(':');
  const bool has_port = colon != std::string::npos &&
                        (name.find(':') == colon || name.substr(0, colon).ends_with(']'));
  std::string host = name.substr(0, has_port ? colon : std::string::npos);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  return {host, has_port ? name.substr(colon + 1) : ""};
}

bool IsLoopback(const std::string& host) {
  in_addr v4;
  in6_addr v6;
  if (host == "localhost") return true;
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
  return inet_pton(AF_INET6, host.c_str(), &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

// It becomes a folder's name and part of a url.
absl::Status CheckHost(const std::string& host) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view(".-_:[]").find(c) != std::string_view::npos;
  };
  if (host.empty() || host.size() > kMaxHostBytes || host.starts_with('.') ||
      !std::all_of(host.begin(), host.end(), allowed))
    return InvalidArgument("\"{}\" is no registry host", Printable(host));
  return absl::OkStatus();
}

// Docker's layout: *.crt are authorities, x.cert and x.key ours.
absl::StatusOr<std::vector<Host>> FromCertificates(const fs::path& folder,
                                                   const std::string& name) {
  Host host = DefaultHost(name);
  std::error_code error;
  std::vector<fs::path> files;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string extension = it->path().extension();
    if (extension == ".crt" || extension == ".cert") files.push_back(it->path());
    if (files.size() > kMaxCertificates)
      return InvalidArgument("{}: more than {} certificates", folder.string(), kMaxCertificates);
  }
  if (error) return ErrnoStatus(error.value(), folder.string());
  std::sort(files.begin(), files.end());
  for (const fs::path& file : files) {
    if (file.extension() == ".crt") {
      host.authorities.push_back(file);
      continue;
    }
    const fs::path key = fs::path(file).replace_extension(".key");
    host.client_certificates.push_back({file, fs::exists(key, error) ? key : fs::path()});
  }
  return std::vector<Host>{std::move(host)};
}

absl::StatusOr<std::vector<Host>> FromFolder(const fs::path& folder, const std::string& host) {
  const fs::path file = folder / "hosts.toml";
  const absl::StatusOr<std::string> text = ReadFile(file, kMaxFileBytes);
  if (absl::IsNotFound(text.status())) return FromCertificates(folder, host);
  RETURN_IF_ERROR(text.status());
  if (text->empty()) return FromCertificates(folder, host);
  absl::StatusOr<std::vector<Host>> hosts = ParseHosts(*text, folder, host);
  if (!hosts.ok()) return Annotate(hosts.status(), file.string());
  return hosts;
}

// "/x/../y/" as "/y".
std::string CleanPath(const std::string& path) {
  std::string clean = fs::path(path).lexically_normal().string();
  while (clean.ends_with('/')) clean.pop_back();
  return clean;
}

}  // namespace

Host DefaultHost(const std::string& name) {
  Host host;
  host.name = name == "docker.io" ? "registry-1.docker.io" : name;
  const auto [address, port] = Split(name);
  // Bare IPv6 addresses need brackets in a url.
  if (port.empty() && address.find(':') != std::string::npos) host.name = "[" + address + "]";
  const bool loopback = IsLoopback(address);
  const bool plain = loopback && !port.empty() && port != "443";
  host.skip_verify = loopback;
  host.url = (plain ? "http://" : "https://") + host.name + "/v2";
  return host;
}

absl::StatusOr<std::string> ApiRoot(std::string server, bool override_path) {
  if (server.find("://") == std::string::npos) server = "https://" + server;
  ASSIGN_OR_RETURN(const std::string url, http::ResolveUrl(server, server));
  if (url.find_first_of("?#") != std::string::npos)
    return InvalidArgument("a registry's url has no \"?\" and no \"#\"");
  const size_t slash = url.find('/', url.find("://") + 3);
  const std::string origin = url.substr(0, slash);
  std::string path = slash == std::string::npos ? "" : CleanPath(url.substr(slash));
  if (!override_path && !path.ends_with("/v2")) path += "/v2";
  return origin + path;
}

std::string HostOfUrl(const std::string& url) {
  const size_t start = url.find("://") + 3;
  return url.substr(start, url.find('/', start) - start);
}

std::vector<fs::path> HostFolders(const fs::path& root, const std::string& host) {
  std::vector<fs::path> folders;
  if (root.empty()) return folders;
  const size_t colon = host.rfind(':');
  if (colon != std::string::npos && colon > 0)
    folders.push_back(root / (host.substr(0, colon) + "_" + host.substr(colon + 1) + "_"));
  folders.push_back(root / host);
  folders.push_back(root / "_default");
  return folders;
}

absl::StatusOr<std::vector<Host>> FindHosts(const fs::path& root, const std::string& host) {
  RETURN_IF_ERROR(CheckHost(host));
  for (const fs::path& folder : HostFolders(root, host)) {
    std::error_code error;
    if (fs::exists(folder, error)) return FromFolder(folder, host);
    if (error) return ErrnoStatus(error.value(), folder.string());
  }
  return std::vector<Host>{DefaultHost(host)};
}

}  // namespace kapsule::registry
