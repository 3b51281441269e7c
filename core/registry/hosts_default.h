// What hosts.cc and hosts_file.cc share. Private to this folder.
#pragma once

#include <string>

#include "core/registry/hosts.h"

namespace kapsule::registry {

// The registry `host` itself, where nothing is said about it.
Host DefaultHost(const std::string& host);

// `server` of a configuration with the API's path, as an absolute url without a
// '/' at its end. InvalidArgument says why it is none.
absl::StatusOr<std::string> ApiRoot(std::string server, bool override_path);

// "host[:port]" of an absolute url.
std::string HostOfUrl(const std::string& url);

}  // namespace kapsule::registry
