// Where the blobs of a registry can be had: mirrors and the registry itself, as
// containerd's folder "certs.d" says (docs/hosts.md of containerd 1.6 to 2.x).
#pragma once

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/http/headers.h"

namespace kapsule::registry {

struct ClientCertificate {
  std::filesystem::path certificate;
  std::filesystem::path key;  // empty: in the certificate's file
};

struct Host {
  std::string url;   // API root, as "https://mirror.example:5000/v2"
  std::string name;  // host[:port] of it
  bool pull = true, resolve = true, push = true;
  std::vector<std::filesystem::path> authorities;      // PEM, beside the system's
  std::vector<ClientCertificate> client_certificates;  // the first one is shown
  bool skip_verify = false;                            // this and the former: of `url` only
  std::chrono::milliseconds connect_timeout{0};        // 0: not said
  http::Headers headers;                               // sent to this host only
};

// The folders that may speak of `host` ("docker.io", "127.0.0.1:5000"), the most
// specific first: <root>/host_port_, <root>/host:port, <root>/_default.
std::vector<std::filesystem::path> HostFolders(const std::filesystem::path& root,
                                               const std::string& host);

// The hosts to ask, in this order; the registry itself is the last.
//   <root>/…/hosts.toml  what it says
//   certificates there   Docker's layout: *.crt, and *.cert with *.key
//   neither              https://host, http on a loopback address (https where it
//                        has no port or 443, as containerd 2 does)
// An empty `root` has no folders. Errors name file and key; containerd passes a
// broken file over, and so would pull from hosts that nobody meant.
//   InvalidArgument  a file that says nothing valid, or `host` is no host
absl::StatusOr<std::vector<Host>> FindHosts(const std::filesystem::path& root,
                                            const std::string& host);

// The text of a hosts.toml; `folder` is where relative paths begin.
absl::StatusOr<std::vector<Host>> ParseHosts(const std::string& text,
                                             const std::filesystem::path& folder,
                                             const std::string& host);

}  // namespace kapsule::registry
