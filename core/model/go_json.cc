#include "core/model/go_json.h"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>

namespace kapsule::model {
namespace {

struct Decimal {
  std::string digits;  // without point
  int exponent = 0;    // of the first digit: value = d.igits x 10^exponent
  bool negative = false;
};

Decimal ShortestDecimal(float value) {
  std::array<char, 32> buffer;
  const char* end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), std::abs(value),
                                  std::chars_format::scientific)
                        .ptr;
  const std::string text(static_cast<const char*>(buffer.data()), end);  // d.ddde-dd
  const size_t e = text.find('e');
  Decimal decimal;
  decimal.negative = std::signbit(value);
  for (const char c : text.substr(0, e))
    if (c != '.') decimal.digits += c;
  decimal.exponent = std::atoi(text.c_str() + e + 1);
  return decimal;
}

std::string Plain(const std::string& digits, int exponent) {
  if (exponent < 0) return "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  const size_t whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return digits + std::string(whole - digits.size(), '0');
  return digits.substr(0, whole) + "." + digits.substr(whole);
}

}  // namespace

std::string GoText(const Json& json) {
  const std::string text = DumpJson(json);
  std::string out;
  out.reserve(text.size());
  // These characters stand only inside strings.
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const std::string_view rest = std::string_view(text).substr(i, 3);
    if (c == '<' || c == '>' || c == '&') {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else if (rest == "\u2028" || rest == "\u2029") {
      out += rest == "\u2028" ? "\\u2028" : "\\u2029";
      i += 2;
    } else {
      out += c;
    }
  }
  return out;
}

std::string GoFloat(float value) {
  const Decimal decimal = ShortestDecimal(value);
  const std::string sign = decimal.negative ? "-" : "";
  const float size = std::abs(value);
  if (size == 0 || (size >= 1e-6F && size < 1e21F))
    return sign + Plain(decimal.digits, decimal.exponent);
  const std::string fraction = decimal.digits.size() > 1 ? "." + decimal.digits.substr(1) : "";
  return fmt::format("{}{}{}e{}{}", sign, decimal.digits[0], fraction,
                     decimal.exponent < 0 ? "-" : "+", std::abs(decimal.exponent));
}

}  // namespace kapsule::model
