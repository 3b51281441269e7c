#include <cstdint>

#include "core/registry/docker_auth.h"
#include "core/registry/image_match.h"
#include "core/registry/image_place.h"

// The text of a pull secret, or of Docker's configuration.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kapsule;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<Json> json = ParseJson(text, 1 << 20);
  const Json* auths = json.ok() ? FindMember(*json, "auths") : nullptr;
  if (auths == nullptr || !auths->is_object()) return 0;
  (void)registry::FindAuthForImage(*auths, "a.example:5000/b/c");
  for (const auto& [key, auth] : auths->items()) {
    if (registry::ParseImagePlace(key).host.find('/') != std::string::npos) __builtin_trap();
    const auto credentials = registry::ParseDockerAuth(auth);
    if (credentials.ok() && *credentials && (*credentials)->username.empty() &&
        (*credentials)->identity_token.empty() && (*credentials)->registry_token.empty())
      __builtin_trap();
  }
  return 0;
}
