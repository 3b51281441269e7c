#include "core/registry/image_place.h"

namespace kapsule::registry {

ImagePlace SplitImagePlace(std::string_view text) {
  const size_t slash = text.find('/');
  ImagePlace place{std::string(text.substr(0, slash)), ""};
  if (slash != std::string_view::npos) place.path = text.substr(slash + 1);
  if (place.host == "index.docker.io" || place.host == "registry-1.docker.io")
    place.host = "docker.io";
  return place;
}

ImagePlace ParseImagePlace(std::string_view text) {
  for (const std::string_view scheme : {"https://", "http://"}) {
    if (text.starts_with(scheme)) text.remove_prefix(scheme.size());
  }
  while (text.ends_with('/')) text.remove_suffix(1);
  ImagePlace place = SplitImagePlace(text);
  if (place.path == "v1" || place.path == "v2") place.path.clear();
  return place;
}

}  // namespace kapsule::registry
