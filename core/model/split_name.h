// File names of split GGUF sets: x-00002-of-00003.gguf (llama.cpp).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace kapsule::model {

struct SplitName {
  std::string prefix;
  uint64_t number = 0;  // from 1
  uint64_t count = 0;

  // The name of part `i` of the same set, from 1.
  std::string Part(uint64_t i) const;
};

// nullopt for a name of another form.
std::optional<SplitName> ParseSplitName(const std::string& name);

}  // namespace kapsule::model
