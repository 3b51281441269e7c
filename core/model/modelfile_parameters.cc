#include "core/model/modelfile_parameters.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>

#include "core/base/printable.h"

namespace kapsule::model {
namespace {

enum class Type { kInt, kFloat, kBool, kStrings };
struct Parameter {
  std::string_view name;
  Type type;
};
constexpr std::array kParameters = {
    Parameter{"num_keep", Type::kInt},
    Parameter{"seed", Type::kInt},
    Parameter{"num_predict", Type::kInt},
    Parameter{"top_k", Type::kInt},
    Parameter{"repeat_last_n", Type::kInt},
    Parameter{"num_ctx", Type::kInt},
    Parameter{"num_batch", Type::kInt},
    Parameter{"num_gpu", Type::kInt},
    Parameter{"num_thread", Type::kInt},
    Parameter{"draft_num_predict", Type::kInt},
    Parameter{"main_gpu", Type::kInt},
    Parameter{"temperature", Type::kFloat},
    Parameter{"top_p", Type::kFloat},
    Parameter{"min_p", Type::kFloat},
    Parameter{"typical_p", Type::kFloat},
    Parameter{"repeat_penalty", Type::kFloat},
    Parameter{"presence_penalty", Type::kFloat},
    Parameter{"frequency_penalty", Type::kFloat},
    Parameter{"use_mmap", Type::kBool},
    Parameter{"stop", Type::kStrings},
};
constexpr std::array<std::string_view, 9> kDeprecated = {
    "penalize_newline", "low_vram", "f16_kv",       "logits_all",  "vocab_only",
    "use_mlock",        "mirostat", "mirostat_tau", "mirostat_eta"};

// Without the sign that strconv takes and from_chars does not.
std::string_view WithoutPlus(std::string_view text) {
  const bool plus = text.size() > 1 && text[0] == '+' && text[1] != '-';
  return text.substr(plus ? 1 : 0);
}

template <typename T>
std::errc Parse(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return end == text.data() + text.size() ? error : std::errc::invalid_argument;
}

std::optional<int64_t> ParseInt(std::string_view text) {
  int64_t value = 0;
  if (Parse(WithoutPlus(text), value) != std::errc()) return std::nullopt;
  return value;
}

std::optional<float> ParseFloat(std::string_view text) {
  float value = 0;
  const std::errc error = Parse(WithoutPlus(text), value);
  if (error == std::errc::result_out_of_range) {
    // Too small is 0, as in Go; too large is an error.
    double wide = 0;
    const bool small = Parse(WithoutPlus(text), wide) == std::errc() && std::abs(wide) < 1;
    return small ? std::optional<float>(0.0F) : std::nullopt;
  }
  // JSON has no infinity.
  if (error != std::errc() || !std::isfinite(value)) return std::nullopt;
  return value;
}

std::optional<bool> ParseBool(std::string_view text) {
  for (const std::string_view word : {"1", "t", "T", "true", "TRUE", "True"})
    if (text == word) return true;
  for (const std::string_view word : {"0", "f", "F", "false", "FALSE", "False"})
    if (text == word) return false;
  return std::nullopt;
}

template <typename T>
absl::StatusOr<ParameterValue> Checked(const std::optional<T>& value, const char* type,
                                       const std::string& text) {
  if (!value.has_value()) return InvalidArgument("invalid {} value [{}]", type, Printable(text));
  return ParameterValue(*value);
}

}  // namespace

bool IsDeprecatedParameter(std::string_view name) {
  return std::find(kDeprecated.begin(), kDeprecated.end(), name) != kDeprecated.end();
}

absl::StatusOr<ParameterValue> ParseParameter(const std::string& name, const std::string& value) {
  const auto* parameter = std::find_if(kParameters.begin(), kParameters.end(),
                                       [&](const Parameter& p) { return p.name == name; });
  if (parameter == kParameters.end())
    return InvalidArgument("unknown parameter '{}'", Printable(name));
  switch (parameter->type) {
    case Type::kInt:
      return Checked(ParseInt(value), "int", value);
    case Type::kFloat:
      return Checked(ParseFloat(value), "float", value);
    case Type::kBool:
      return Checked(ParseBool(value), "bool", value);
    case Type::kStrings:
      return ParameterValue(std::vector<std::string>{value});
  }
  return Internal("parameter {} has no type", name);
}

}  // namespace kapsule::model
