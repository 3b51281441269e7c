#include <utility>

#include "core/base/json.h"
#include "core/keyprovider/wire.h"

namespace kapsule::keyprovider {
namespace {

// One object of strings. ParseJson()'s time grows with the square of an object's
// members, of which there is room for hundreds of thousands here.
class Reader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  oci::Annotations annotations;
  std::string error = "not JSON";

  bool start_object(size_t) override {
    return !std::exchange(open_, true) || Fail("a value is not a string");
  }
  bool end_object() override { return true; }
  bool key(string_t& name) override {
    name_ = name;
    return annotations.count(name) == 0 || Fail("a name stands twice");
  }
  bool string(string_t& value) override {
    if (!open_) return Fail("not an object");
    annotations.emplace(std::move(name_), std::move(value));
    return true;
  }
  bool start_array(size_t) override { return NotAString(); }
  bool end_array() override { return NotAString(); }
  bool null() override { return NotAString(); }
  bool boolean(bool) override { return NotAString(); }
  bool number_integer(number_integer_t) override { return NotAString(); }
  bool number_unsigned(number_unsigned_t) override { return NotAString(); }
  bool number_float(number_float_t, const string_t&) override { return NotAString(); }
  bool binary(binary_t&) override { return NotAString(); }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception&) override {
    return Fail("not JSON");
  }

 private:
  bool NotAString() { return Fail(open_ ? "a value is not a string" : "not an object"); }
  bool Fail(const char* what) {
    error = what;
    return false;
  }

  bool open_ = false;
  std::string name_;
};

}  // namespace

std::string AnnotationsToJson(const oci::Annotations& annotations) {
  std::string json = "{";
  for (const auto& [name, value] : annotations)
    json += (json.size() > 1 ? "," : "") + DumpJson(name) + ":" + DumpJson(value);
  return json + "}";
}

absl::StatusOr<oci::Annotations> AnnotationsFromJson(std::string_view json) {
  if (json.size() > kMaxAnnotationBytes)
    return InvalidArgument("{} bytes of annotations, more than {}", json.size(),
                           kMaxAnnotationBytes);
  Reader reader;
  if (!nlohmann::json::sax_parse(json, &reader))
    return InvalidArgument("annotations: {}", reader.error);
  return std::move(reader.annotations);
}

}  // namespace kapsule::keyprovider
