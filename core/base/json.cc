#include "core/base/json.h"

#include <set>
#include <vector>

namespace kapsule {
namespace {

constexpr size_t kMaxDepth = 64;

// Builds the value in linear time and stops at the first thing that we do not
// accept. (ordered_json's own parser looks through all members for each new one,
// which takes minutes for an object of 4 MiB.)
class Builder final : public nlohmann::json_sax<Json> {
 public:
  Json& value() { return value_; }
  const std::string& error() const { return error_; }

  bool null() override { return Add(nullptr); }
  bool boolean(bool value) override { return Add(value); }
  bool number_integer(number_integer_t value) override { return Add(value); }
  bool number_unsigned(number_unsigned_t value) override { return Add(value); }
  bool number_float(number_float_t value, const string_t&) override { return Add(value); }
  bool string(string_t& value) override { return Add(std::move(value)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return Enter(Json::object()); }
  bool key(string_t& name) override {
    if (!open_.back().names.insert(name).second) {
      error_ = fmt::format("member \"{}\" stands twice", name);
      return false;
    }
    key_ = std::move(name);
    return true;
  }
  bool end_object() override { return Leave(); }
  bool start_array(size_t) override { return Enter(Json::array()); }
  bool end_array() override { return Leave(); }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    error_ = fmt::format("not JSON at byte {}", position);
    return false;
  }

 private:
  // A container that is not closed yet. It stays where it is: what holds it does
  // not grow meanwhile.
  struct Open {
    Json* container;
    std::set<std::string> names;
  };

  Json* Place(Json value) {
    if (open_.empty()) {
      value_ = std::move(value);
      return &value_;
    }
    Json& container = *open_.back().container;
    if (container.is_array()) {
      container.push_back(std::move(value));
      return &container.back();
    }
    auto& members = container.get_ref<Json::object_t&>();
    members.push_back({std::move(key_), std::move(value)});
    return &members.back().second;
  }
  bool Add(Json value) {
    Place(std::move(value));
    return true;
  }
  bool Enter(Json container) {
    if (open_.size() == kMaxDepth) {
      error_ = fmt::format("nested deeper than {}", kMaxDepth);
      return false;
    }
    open_.push_back({Place(std::move(container)), {}});
    return true;
  }
  bool Leave() {
    open_.pop_back();
    return true;
  }

  Json value_;
  std::string key_;  // of the member whose value comes next
  std::vector<Open> open_;
  std::string error_;
};

}  // namespace

absl::StatusOr<Json> ParseJson(std::string_view text, size_t limit) {
  if (text.size() > limit)
    return InvalidArgument("{} bytes of JSON, more than the limit of {}", text.size(), limit);
  Builder builder;
  if (!Json::sax_parse(text, &builder)) return InvalidArgument("{}", builder.error());
  return std::move(builder.value());
}

std::string DumpJson(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

const Json* FindMember(const Json& object, std::string_view name) {
  if (!object.is_object()) return nullptr;
  const auto member = object.find(std::string(name));
  return member == object.end() || member->is_null() ? nullptr : &*member;
}

absl::StatusOr<std::string> StringMember(const Json& object, std::string_view name) {
  const Json* member = FindMember(object, name);
  if (member == nullptr || !member->is_string())
    return InvalidArgument("\"{}\" is missing or not a string", name);
  return member->get<std::string>();
}

absl::StatusOr<uint64_t> UintMember(const Json& object, std::string_view name) {
  const Json* member = FindMember(object, name);
  if (member == nullptr || !member->is_number_unsigned())
    return InvalidArgument("\"{}\" is missing or not a whole number", name);
  return member->get<uint64_t>();
}

absl::StatusOr<const Json*> ObjectMember(const Json& object, std::string_view name) {
  const Json* member = FindMember(object, name);
  if (member == nullptr || !member->is_object())
    return InvalidArgument("\"{}\" is missing or not an object", name);
  return member;
}

absl::StatusOr<const Json*> ArrayMember(const Json& object, std::string_view name) {
  const Json* member = FindMember(object, name);
  if (member == nullptr || !member->is_array())
    return InvalidArgument("\"{}\" is missing or not an array", name);
  return member;
}

absl::StatusOr<std::optional<std::string>> OptionalString(const Json& object,
                                                          std::string_view name) {
  const Json* member = FindMember(object, name);
  if (member == nullptr) return std::nullopt;
  if (!member->is_string()) return InvalidArgument("\"{}\" is not a string", name);
  return member->get<std::string>();
}

}  // namespace kapsule
