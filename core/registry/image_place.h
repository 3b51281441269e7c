// Names of places of images. Private to this folder.
#pragma once

#include <string>
#include <string_view>

namespace kapsule::registry {

struct ImagePlace {
  std::string host;  // "docker.io", "registry.example:5000"
  std::string path;  // "a/b"; empty: all of the host
};

// A host, or a host and a repository, as programs write them: "h.io/v2" is v2 of h.io.
ImagePlace SplitImagePlace(std::string_view text);

// As people write them in files: "https://index.docker.io/v1/" is docker.io, "h.io/a/b/"
// is a/b of h.io, "h.io/v2" all of h.io.
ImagePlace ParseImagePlace(std::string_view text);

}  // namespace kapsule::registry
