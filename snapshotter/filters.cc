#include "snapshotter/filters.h"

#include <algorithm>
#include <optional>
#include <regex>

namespace kapsule::snapshotter {
namespace {

constexpr size_t kMaxFilterBytes = 64 * 1024;
constexpr size_t kMaxPatternBytes = 1024;
constexpr std::string_view kSpaces = " \t\n\v\f\r";

bool IsFieldByte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}
bool IsOperatorByte(char c) { return c == '=' || c == '!' || c == '~'; }
bool IsQuote(char c) { return c == '"' || c == '/' || c == '|'; }
bool IsValueByte(char c) { return c != ',' && static_cast<unsigned char>(c) > ' ' && c != 0x7f; }

std::optional<std::string> FieldOf(const Info& info, const std::vector<std::string>& path) {
  if (path[0] == "name") return info.name;
  if (path[0] == "parent") return info.parent;
  if (path[0] == "kind") {
    if (info.kind == Kind::kActive) return "active";
    return info.kind == Kind::kView ? "view" : "committed";
  }
  if (path[0] != "labels") return std::nullopt;
  std::string name;
  for (size_t i = 1; i < path.size(); ++i) name += (i > 1 ? "." : "") + path[i];
  const auto found = info.labels.find(name);
  if (found == info.labels.end()) return std::nullopt;
  return found->second;
}

void AppendUtf8(std::string& out, uint32_t rune) {
  if (rune < 0x80) {
    out += static_cast<char>(rune);
  } else if (rune < 0x800) {
    out += static_cast<char>(0xc0 | rune >> 6);
    out += static_cast<char>(0x80 | (rune & 0x3f));
  } else if (rune < 0x10000) {
    out += static_cast<char>(0xe0 | rune >> 12);
    out += static_cast<char>(0x80 | (rune >> 6 & 0x3f));
    out += static_cast<char>(0x80 | (rune & 0x3f));
  } else {
    out += static_cast<char>(0xf0 | rune >> 18);
    out += static_cast<char>(0x80 | (rune >> 12 & 0x3f));
    out += static_cast<char>(0x80 | (rune >> 6 & 0x3f));
    out += static_cast<char>(0x80 | (rune & 0x3f));
  }
}

}  // namespace

struct Filters::Selector {
  enum class Operator { kPresent, kEqual, kNotEqual, kMatches };

  std::vector<std::string> path;
  Operator op = Operator::kPresent;
  std::string value;
  std::regex pattern;  // of kMatches

  bool Match(const Info& info) const {
    const std::optional<std::string> field = FieldOf(info, path);
    switch (op) {
      case Operator::kPresent:
        return field.has_value();
      case Operator::kEqual:
        return field == value;
      case Operator::kNotEqual:
        return field.value_or("") != value;
      case Operator::kMatches:
        break;
    }
    try {
      return std::regex_search(field.value_or(""), pattern);
    } catch (const std::regex_error&) {  // the text is too long for this pattern
      return false;
    }
  }
};

class Filters::Parser {
 public:
  explicit Parser(std::string_view input) : input_(input) {}

  absl::StatusOr<Conjunction> Parse() {
    if (input_.size() > kMaxFilterBytes)
      return InvalidArgument("filter of {} bytes: at most {}", input_.size(), kMaxFilterBytes);
    Conjunction all;
    while (true) {
      Selector selector;
      RETURN_IF_ERROR(ParseSelector(selector));
      all.push_back(std::move(selector));
      SkipSpaces();
      if (AtEnd()) return all;
      if (!Take(',')) return Error("expected \",\"");
    }
  }

 private:
  absl::Status ParseSelector(Selector& selector) {
    do {
      ASSIGN_OR_RETURN(std::string field, Field());
      selector.path.push_back(std::move(field));
      SkipSpaces();
    } while (Take('.'));
    if (AtEnd() || Peek() == ',') return absl::OkStatus();
    RETURN_IF_ERROR(ParseOperator(selector.op));
    const bool matches = selector.op == Selector::Operator::kMatches;
    ASSIGN_OR_RETURN(selector.value, Value(matches));
    return matches ? Compile(selector) : absl::OkStatus();
  }

  absl::StatusOr<std::string> Field() {
    SkipSpaces();
    if (!AtEnd() && Peek() == '"') return Quoted();
    const size_t begin = at_;
    while (!AtEnd() && IsFieldByte(Peek())) ++at_;
    if (at_ == begin) return Error("expected a field");
    return std::string(input_.substr(begin, at_ - begin));
  }

  absl::Status ParseOperator(Selector::Operator& op) {
    const size_t begin = at_;
    while (!AtEnd() && IsOperatorByte(Peek())) ++at_;
    const std::string_view text = input_.substr(begin, at_ - begin);
    if (text == "==")
      op = Selector::Operator::kEqual;
    else if (text == "!=")
      op = Selector::Operator::kNotEqual;
    else if (text == "~=")
      op = Selector::Operator::kMatches;
    else
      return Error("expected ==, != or ~=");
    return absl::OkStatus();
  }

  // Slashes and bars are quotes for regular expressions only.
  absl::StatusOr<std::string> Value(bool pattern) {
    SkipSpaces();
    if (!AtEnd() && IsQuote(Peek())) {
      if (Peek() != '"' && !pattern) return Error("this quote is for ~= only");
      return Quoted();
    }
    const size_t begin = at_;
    while (!AtEnd() && IsValueByte(Peek())) ++at_;
    if (at_ == begin) return Error("expected a value");
    return std::string(input_.substr(begin, at_ - begin));
  }

  absl::StatusOr<std::string> Quoted() {
    const char quote = input_[at_++];
    std::string text;
    while (!AtEnd() && Peek() != '\n') {
      const char c = input_[at_++];
      if (c == quote) return text;
      if (c != '\\')
        text += c;
      else
        RETURN_IF_ERROR(Escape(quote, text));
    }
    return Error("the quoted text does not end");
  }

  // Go's escapes, after the backslash.
  absl::Status Escape(char quote, std::string& text) {
    constexpr std::string_view kNames = "abfnrtv\\";
    constexpr std::string_view kBytes = "\a\b\f\n\r\t\v\\";
    if (AtEnd()) return Error("the quoted text does not end");
    const char c = input_[at_++];
    if (const size_t i = kNames.find(c); i != std::string_view::npos) {
      text += kBytes[i];
      return absl::OkStatus();
    }
    if (c == quote) {
      text += c;
      return absl::OkStatus();
    }
    uint32_t rune = 0;
    if (c >= '0' && c <= '7') {
      --at_;
      RETURN_IF_ERROR(Digits(3, 8, rune));
      if (rune > 0xff) return Error("bad escape");
      text += static_cast<char>(rune);
    } else if (c == 'x') {
      RETURN_IF_ERROR(Digits(2, 16, rune));
      text += static_cast<char>(rune);
    } else if (c == 'u' || c == 'U') {
      RETURN_IF_ERROR(Digits(c == 'u' ? 4 : 8, 16, rune));
      if (rune > 0x10ffff) return Error("bad escape");
      AppendUtf8(text, rune);
    } else {
      return Error("bad escape");
    }
    return absl::OkStatus();
  }

  absl::Status Digits(int count, uint32_t base, uint32_t& value) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    for (value = 0; count > 0; --count, ++at_) {
      if (AtEnd()) return Error("bad escape");
      const char c = Peek();
      const size_t digit = kDigits.find(c >= 'A' && c <= 'F' ? static_cast<char>(c + 32) : c);
      if (digit >= base) return Error("bad escape");
      value = value * base + static_cast<uint32_t>(digit);
    }
    return absl::OkStatus();
  }

  // The polynomial matcher takes no exponential time, whatever the pattern.
  absl::Status Compile(Selector& selector) {
    if (selector.value.size() > kMaxPatternBytes)
      return Error(fmt::format("a pattern has at most {} bytes", kMaxPatternBytes));
    try {
      selector.pattern =
          std::regex(selector.value, std::regex::ECMAScript | std::regex_constants::__polynomial);
    } catch (const std::regex_error&) {
      return Error("bad regular expression");
    }
    return absl::OkStatus();
  }

  void SkipSpaces() {
    while (!AtEnd() && kSpaces.find(Peek()) != std::string_view::npos) ++at_;
  }
  bool AtEnd() const { return at_ == input_.size(); }
  char Peek() const { return input_[at_]; }
  bool Take(char c) {
    if (AtEnd() || Peek() != c) return false;
    ++at_;
    return true;
  }
  absl::Status Error(const std::string& what) const {
    return InvalidArgument("filter \"{}\": at byte {}: {}", input_.substr(0, 200), at_, what);
  }

  const std::string_view input_;
  size_t at_ = 0;
};

Filters::Filters() = default;
Filters::Filters(Filters&&) noexcept = default;
Filters::~Filters() = default;

absl::StatusOr<Filters> Filters::Parse(const std::vector<std::string>& filters) {
  Filters parsed;
  for (const std::string& filter : filters) {
    Conjunction all;  // an empty filter matches everything
    if (!filter.empty()) {
      ASSIGN_OR_RETURN(all, Parser(filter).Parse());
    }
    parsed.any_.push_back(std::move(all));
  }
  return parsed;
}

bool Filters::Match(const Info& info) const {
  return any_.empty() || std::any_of(any_.begin(), any_.end(), [&](const Conjunction& all) {
           return std::all_of(all.begin(), all.end(),
                              [&](const Selector& selector) { return selector.Match(info); });
         });
}

}  // namespace kapsule::snapshotter
