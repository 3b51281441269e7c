#include <cstdint>

#include "core/registry/provider_config.h"

// A plugin's response, also read as the configuration that names plugins.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kapsule::registry;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto response = ParseProviderResponse(text, "credentialprovider.kubelet.k8s.io/v1");
  if (response.ok()) (void)response->Find("a.example:5000/b");
  const auto providers = ParseProviderConfig(text);
  if (!providers.ok()) return 0;
  for (const ProviderConfig& provider : *providers) {
    if (provider.name.empty() || provider.match_images.empty()) __builtin_trap();
    if (ProviderRequest(provider, "a/b").empty()) __builtin_trap();
  }
  return 0;
}
