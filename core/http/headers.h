// Header fields of a request or an answer.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kapsule::http {

// RFC 9110: names are compared without case.
bool SameHeaderName(std::string_view a, std::string_view b);

// In the order they were added; a name may stand more than once.
class Headers {
 public:
  Headers() = default;
  Headers(std::initializer_list<std::pair<std::string, std::string>> fields) : fields_(fields) {}

  void Add(std::string name, std::string value) {
    fields_.emplace_back(std::move(name), std::move(value));
  }
  void Remove(std::string_view name);
  void Clear() { fields_.clear(); }
  // The first value of `name`.
  std::optional<std::string> Find(std::string_view name) const;
  // Every value of `name`.
  std::vector<std::string> FindAll(std::string_view name) const;

  auto begin() const { return fields_.begin(); }
  auto end() const { return fields_.end(); }
  size_t size() const { return fields_.size(); }

 private:
  std::vector<std::pair<std::string, std::string>> fields_;
};

}  // namespace kapsule::http
