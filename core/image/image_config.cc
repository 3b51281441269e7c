#include "core/image/image_config.h"

#include <absl/time/time.h>

#include <algorithm>
#include <string_view>

namespace kapsule::image {
namespace {

std::string_view NameOf(std::string_view variable) {
  return variable.substr(0, variable.find('='));
}

bool IsEmptyLayer(const Json& entry) {
  const Json* empty = FindMember(entry, "empty_layer");
  return empty != nullptr && empty->is_boolean() && empty->get<bool>();
}

// The base's history where it fits the base's layers; tools compare the counts.
Json HistoryOf(const BaseImage& base) {
  const Json* history = FindMember(base.config, "history");
  if (history != nullptr && history->is_array() &&
      std::all_of(history->begin(), history->end(), [](const Json& e) { return e.is_object(); }) &&
      history->size() -
              static_cast<size_t>(std::count_if(history->begin(), history->end(), IsEmptyLayer)) ==
          base.layers.size())
    return *history;
  return Json(base.layers.size(), Json{{"created_by", "base image"}});
}

void MergeEnvironment(Json& config, const std::vector<std::string>& ours) {
  Json merged = Json::array();
  const Json* theirs = FindMember(config, "Env");
  if (theirs != nullptr && theirs->is_array()) {
    for (const Json& variable : *theirs) {
      const bool replaced =
          variable.is_string() && std::ranges::any_of(ours, [&](const std::string& our) {
            return NameOf(our) == NameOf(variable.get_ref<const std::string&>());
          });
      if (!replaced) merged.push_back(variable);
    }
  }
  for (const std::string& variable : ours) merged.push_back(variable);
  config["Env"] = std::move(merged);
}

// `object` as the object member `name`, made where it is missing.
Json& Member(Json& object, const char* name) {
  Json& member = object[name];
  if (!member.is_object()) member = Json::object();
  return member;
}

}  // namespace

std::string MakeConfig(const ConfigParts& parts, const BaseImage* base) {
  const std::string created = absl::FormatTime(
      "%Y-%m-%dT%H:%M:%SZ", absl::FromUnixSeconds(parts.created), absl::UTCTimeZone());
  Json config = base != nullptr ? base->config : Json{{"architecture", "amd64"}, {"os", "linux"}};
  config["created"] = created;
  Json& run = Member(config, "config");
  MergeEnvironment(run, parts.environment);
  for (const auto& [name, value] : parts.labels) Member(run, "Labels")[name] = value;

  Json diff_ids = Json::array(), history = Json::array();
  for (const oci::Digest& diff_id : parts.diff_ids) diff_ids.push_back(diff_id.text());
  for (const std::string& made_by : parts.history)
    history.push_back(Json{{"created", created}, {"created_by", made_by}});
  if (base != nullptr) {
    for (const oci::Digest& diff_id : base->diff_ids) diff_ids.push_back(diff_id.text());
    for (const Json& entry : HistoryOf(*base)) history.push_back(entry);
  }
  config["rootfs"] = Json{{"type", "layers"}, {"diff_ids", std::move(diff_ids)}};
  config["history"] = std::move(history);
  return DumpJson(config);
}

}  // namespace kapsule::image
