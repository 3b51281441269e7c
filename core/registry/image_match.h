// Which credentials are meant for which image, as the kubelet decides it.
#pragma once

#include <string>
#include <string_view>

#include "core/base/json.h"

namespace kapsule::registry {

// `pattern` is host[:port][/path]: a "*" or "?" stands for characters of one part
// of the host, parts and ports must agree in number and value, and the path is a
// prefix of the image's. `image` is "host[:port]/repository".
bool MatchesImage(std::string_view pattern, std::string_view image);

// The value of the most specific key of `auths` that matches; null where none
// does. Keys may have a scheme, and end with "/v1/" or "/v2/". docker.io is also
// known as index.docker.io.
const Json* FindAuthForImage(const Json& auths, const std::string& image);

}  // namespace kapsule::registry
