#include "core/registry/yaml.h"

#include <yaml-cpp/yaml.h>

#include <exception>

#include "core/base/printable.h"

namespace kapsule::registry {
namespace {

constexpr int kMaxDepth = 16;
constexpr int kMaxNodes = 10'000;

absl::StatusOr<Json> Convert(const YAML::Node& node, int depth, int* nodes) {
  if (depth > kMaxDepth) return InvalidArgument("nested deeper than {}", kMaxDepth);
  if (++*nodes > kMaxNodes) return InvalidArgument("more than {} nodes", kMaxNodes);
  if (node.IsScalar()) return Json(node.Scalar());
  if (node.IsSequence()) {
    Json array = Json::array();
    for (const YAML::Node& entry : node) {
      ASSIGN_OR_RETURN(Json value, Convert(entry, depth + 1, nodes));
      array.push_back(std::move(value));
    }
    return array;
  }
  if (!node.IsMap()) return Json(nullptr);
  Json object = Json::object();
  for (const auto& entry : node) {
    if (!entry.first.IsScalar()) return InvalidArgument("a key that is no scalar");
    const std::string& key = entry.first.Scalar();
    if (object.contains(key)) return InvalidArgument("the key \"{}\" twice", Printable(key));
    ASSIGN_OR_RETURN(Json value, Convert(entry.second, depth + 1, nodes));
    object[key] = std::move(value);
  }
  return object;
}

}  // namespace

absl::StatusOr<Json> ParseYaml(const std::string& text, size_t limit) {
  if (text.size() > limit) return InvalidArgument("longer than {} bytes", limit);
  try {
    int nodes = 0;
    return Convert(YAML::Load(text), 0, &nodes);
  } catch (const YAML::Exception& error) {
    return InvalidArgument("line {}: {}", error.mark.line + 1, Printable(error.msg));
  } catch (const std::exception&) {
    return ResourceExhausted("no memory for it");
  }
}

}  // namespace kapsule::registry
