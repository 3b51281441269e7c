#include <cstdint>

#include "core/registry/hosts.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto hosts = kapsule::registry::ParseHosts(text, "/certs.d/h.io", "h.io:5000");
  if (!hosts.ok()) return 0;
  if (hosts->empty()) __builtin_trap();
  for (const auto& host : *hosts) {
    if (!host.url.starts_with("http") || host.name.empty()) __builtin_trap();
  }
  return 0;
}
