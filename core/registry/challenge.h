// WWW-Authenticate challenges (RFC 9110, section 11.6.1).
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace kapsule::registry {

struct Challenge {
  std::string scheme;                         // lower case: "basic", "bearer"
  std::map<std::string, std::string> params;  // names in lower case
};

// The challenges of one header value, as far as they can be read: what follows
// the first thing that is no challenge is left out.
std::vector<Challenge> ParseChallenges(std::string_view value);

}  // namespace kapsule::registry
