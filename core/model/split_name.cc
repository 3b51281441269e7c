#include "core/model/split_name.h"

#include <fmt/format.h>

#include <string_view>

namespace kapsule::model {

std::string SplitName::Part(uint64_t i) const {
  return fmt::format("{}-{:05}-of-{:05}.gguf", prefix, i, count);
}

std::optional<SplitName> ParseSplitName(const std::string& name) {
  constexpr std::string_view kForm = "-00000-of-00000.gguf";
  if (name.size() <= kForm.size()) return std::nullopt;
  const size_t begin = name.size() - kForm.size();
  for (size_t i = 0; i < kForm.size(); ++i) {
    const char c = name[begin + i];
    if (kForm[i] == '0' ? c < '0' || c > '9' : c != kForm[i]) return std::nullopt;
  }
  return SplitName{name.substr(0, begin), std::stoul(name.substr(begin + 1, 5)),
                   std::stoul(name.substr(begin + 10, 5))};
}

}  // namespace kapsule::model
