// What tests ask servers.
#pragma once

#include <string>

#include "core/http/client.h"

namespace kapsule::http {

// Gives up soon.
inline Options Hasty() {
  Options options;
  options.stall_timeout = std::chrono::milliseconds(300);
  options.connect_timeout = std::chrono::milliseconds(2000);
  return options;
}

inline Request Get(const std::string& url) {
  Request request;
  request.url = url;
  return request;
}

}  // namespace kapsule::http
