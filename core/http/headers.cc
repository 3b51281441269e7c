#include "core/http/headers.h"

#include <algorithm>

namespace kapsule::http {
namespace {

char Lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 'a' - 'A') : c; }

}  // namespace

bool SameHeaderName(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](char x, char y) { return Lower(x) == Lower(y); });
}

void Headers::Remove(std::string_view name) {
  std::erase_if(fields_, [&](const auto& field) { return SameHeaderName(field.first, name); });
}

std::optional<std::string> Headers::Find(std::string_view name) const {
  for (const auto& [key, value] : fields_) {
    if (SameHeaderName(key, name)) return value;
  }
  return std::nullopt;
}

std::vector<std::string> Headers::FindAll(std::string_view name) const {
  std::vector<std::string> values;
  for (const auto& [key, value] : fields_) {
    if (SameHeaderName(key, name)) values.push_back(value);
  }
  return values;
}

}  // namespace kapsule::http
