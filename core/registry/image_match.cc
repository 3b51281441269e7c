#include "core/registry/image_match.h"

#include <fnmatch.h>

namespace kapsule::registry {
namespace {

struct Name {
  std::string_view host, port, path;
};

Name Split(std::string_view text) {
  Name name;
  const size_t slash = text.find('/');
  name.host = text.substr(0, slash);
  if (slash != std::string_view::npos) name.path = text.substr(slash);
  const size_t colon = name.host.rfind(':');
  if (colon == std::string_view::npos) return name;
  name.port = name.host.substr(colon + 1);
  name.host = name.host.substr(0, colon);
  return name;
}

// Takes the part up to the next '.' off the front.
std::string TakePart(std::string_view* host) {
  const size_t dot = host->find('.');
  const std::string part(host->substr(0, dot));
  *host = dot == std::string_view::npos ? std::string_view() : host->substr(dot + 1);
  return part;
}

// "https://index.docker.io/v1/" as "index.docker.io".
std::string_view Bare(std::string_view key) {
  for (const std::string_view scheme : {"https://", "http://"}) {
    if (key.starts_with(scheme)) key.remove_prefix(scheme.size());
  }
  if (key.ends_with('/')) key.remove_suffix(1);
  for (const std::string_view version : {"/v1", "/v2"}) {
    if (key.ends_with(version)) key.remove_suffix(version.size());
  }
  return key;
}

}  // namespace

bool MatchesImage(std::string_view pattern, std::string_view image) {
  const Name wanted = Split(pattern), found = Split(image);
  if (wanted.host.empty() || wanted.port != found.port || !found.path.starts_with(wanted.path))
    return false;
  std::string_view left = wanted.host, right = found.host;
  while (!left.empty() && !right.empty()) {
    const std::string glob = TakePart(&left), part = TakePart(&right);
    if (fnmatch(glob.c_str(), part.c_str(), 0) != 0) return false;
  }
  return left.empty() && right.empty();
}

const Json* FindAuthForImage(const Json& auths, const std::string& image) {
  if (!auths.is_object()) return nullptr;
  constexpr std::string_view kHub = "docker.io/";
  const std::string other = image.starts_with(kHub) ? "index." + image : image;
  const Json* best = nullptr;
  std::string_view best_key;
  for (const auto& [key, value] : auths.items()) {
    const std::string_view bare = Bare(key);
    if (!MatchesImage(bare, image) && !MatchesImage(bare, other)) continue;
    // Longer paths sort after their prefixes, names after "*".
    if (best == nullptr || bare > best_key) {
      best = &value;
      best_key = bare;
    }
  }
  return best;
}

}  // namespace kapsule::registry
