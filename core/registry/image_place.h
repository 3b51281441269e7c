// Names of places of images in files that people write. Private to this folder.
#pragma once

#include <string>

namespace kapsule::registry {

struct ImagePlace {
  std::string host;  // "docker.io", "registry.example:5000"
  std::string path;  // "a/b"; empty: all of the host
};

// "https://index.docker.io/v1/" is docker.io, "h.io/a/b/" is a/b of h.io.
ImagePlace ParseImagePlace(std::string text);

}  // namespace kapsule::registry
