#include <cstdint>

#include "core/registry/retry.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kapsule;
  http::Response response;
  response.headers.Add("Retry-After", std::string(reinterpret_cast<const char*>(data), size));
  const auto asked = registry::RetryAfter(response);
  if (asked && (asked->count() < 0 || *asked > std::chrono::seconds(60))) __builtin_trap();
  return 0;
}
