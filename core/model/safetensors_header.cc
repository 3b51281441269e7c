#include "core/model/safetensors_header.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "core/base/bytes.h"
#include "core/base/printable.h"
#include "core/model/safetensors.h"

namespace kapsule::model {
namespace {

struct Dtype {
  std::string_view name;
  uint64_t bits;
};
constexpr Dtype kDtypes[] = {
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64},
};

// {"__metadata__":{string:string…},"name":{"dtype":…,"shape":[…],"data_offsets":[b,e]}…}
class HeaderReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::string error;
  std::vector<SafetensorsTensor> tensors;

  bool start_object(size_t) override {
    if (place_ == Place::kStart) return Go(Place::kTop);
    if (place_ == Place::kTensorValue) {
      seen_.clear();
      shape_.clear();
      offsets_.clear();
      dtype_ = nullptr;
      return Go(Place::kTensor);
    }
    if (place_ == Place::kMetadataValue) return Go(Place::kMetadata);
    return Unexpected("an object");
  }

  bool end_object() override {
    if (place_ == Place::kTensor) return AddTensor() && Go(Place::kTop);
    if (place_ == Place::kMetadata) return Go(Place::kTop);
    return Go(Place::kEnd);
  }

  bool key(string_t& name) override {
    if (place_ == Place::kTop) {
      name_ = name;
      if (!names_.insert(name).second)
        return Fail(fmt::format("\"{}\" stands twice", Printable(name)));
      if (name == "__metadata__") return Go(Place::kMetadataValue);
      if (tensors.size() == kMaxSafetensorsTensors)
        return Fail(fmt::format("more tensors than the limit of {}", kMaxSafetensorsTensors));
      return Go(Place::kTensorValue);
    }
    if (place_ == Place::kMetadata) return true;
    if (!seen_.insert(name).second)
      return Fail(fmt::format("\"{}\" stands twice", Printable(name)));
    if (name == "dtype") return Go(Place::kDtype);
    if (name == "shape") return Go(Place::kShapeValue);
    if (name == "data_offsets") return Go(Place::kOffsetsValue);
    return Fail(fmt::format("unknown member \"{}\"", Printable(name)));
  }

  bool start_array(size_t) override {
    if (place_ == Place::kShapeValue) return Go(Place::kShape);
    if (place_ == Place::kOffsetsValue) return Go(Place::kOffsets);
    return Unexpected("an array");
  }
  bool end_array() override { return Go(Place::kTensor); }

  bool string(string_t& value) override {
    if (place_ == Place::kMetadata) return true;
    if (place_ != Place::kDtype) return Unexpected("a string");
    const auto* found = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                     [&](const Dtype& dtype) { return dtype.name == value; });
    if (found == std::end(kDtypes))
      return Fail(fmt::format("unknown dtype \"{}\"", Printable(value)));
    dtype_ = found;
    return Go(Place::kTensor);
  }

  bool number_unsigned(number_unsigned_t value) override {
    constexpr size_t kMaxDimensions = 64;
    std::vector<uint64_t>* target = place_ == Place::kShape     ? &shape_
                                    : place_ == Place::kOffsets ? &offsets_
                                                                : nullptr;
    if (target == nullptr || target->size() == kMaxDimensions) return Unexpected("a number");
    target->push_back(value);
    return true;
  }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a bool"); }
  bool number_integer(number_integer_t) override { return Unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return Unexpected("a fraction"); }
  bool binary(binary_t&) override { return Unexpected("binary"); }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    return Fail(fmt::format("the header is not JSON at byte {}", position));
  }

 private:
  enum class Place {
    kStart,
    kTop,
    kMetadataValue,
    kMetadata,
    kTensorValue,
    kTensor,
    kDtype,
    kShapeValue,
    kShape,
    kOffsetsValue,
    kOffsets,
    kEnd
  };

  bool Go(Place place) {
    place_ = place;
    return true;
  }
  bool Fail(const std::string& what) {
    error = name_.empty() ? what : fmt::format("tensor \"{}\": {}", Printable(name_), what);
    return false;
  }
  bool Unexpected(const char* what) { return Fail(fmt::format("{} where none belongs", what)); }

  bool AddTensor() {
    if (dtype_ == nullptr || !seen_.contains("shape") || offsets_.size() != 2)
      return Fail("dtype, shape or data_offsets is missing");
    uint64_t elements = 1;
    for (const uint64_t n : shape_) {
      const std::optional<uint64_t> product = CheckedMul(elements, n);
      if (!product.has_value()) return Fail("its size does not fit 64 bits");
      elements = *product;
    }
    const std::optional<uint64_t> bits = CheckedMul(elements, dtype_->bits);
    if (!bits.has_value()) return Fail("its size does not fit 64 bits");
    const uint64_t begin = offsets_[0], end = offsets_[1];
    if (begin > end || *bits % 8 != 0 || end - begin != *bits / 8)
      return Fail(fmt::format("data_offsets {} to {} do not fit its {} bits", begin, end, *bits));
    tensors.push_back({dtype_->name, elements, begin, end});
    return true;
  }

  Place place_ = Place::kStart;
  std::set<std::string> names_;
  // The tensor that is being read.
  std::string name_;
  std::set<std::string> seen_;
  const Dtype* dtype_ = nullptr;
  std::vector<uint64_t> shape_, offsets_;
};

}  // namespace

absl::StatusOr<std::vector<SafetensorsTensor>> ParseSafetensorsHeader(std::string_view json) {
  HeaderReader reader;
  if (!nlohmann::json::sax_parse(json, &reader)) return InvalidArgument("{}", reader.error);
  return std::move(reader.tensors);
}

}  // namespace kapsule::model
