#include "core/registry/image_place.h"

#include <string_view>

namespace kapsule::registry {

ImagePlace ParseImagePlace(std::string text) {
  for (const std::string_view scheme : {"https://", "http://"}) {
    if (text.starts_with(scheme)) text = text.substr(scheme.size());
  }
  while (text.ends_with('/')) text.pop_back();
  const size_t slash = text.find('/');
  ImagePlace place{text.substr(0, slash), slash == std::string::npos ? "" : text.substr(slash + 1)};
  if (place.host == "index.docker.io" || place.host == "registry-1.docker.io")
    place.host = "docker.io";
  if (place.path == "v1" || place.path == "v2") place.path.clear();
  return place;
}

}  // namespace kapsule::registry
