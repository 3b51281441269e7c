#include "core/crypt/secret_json.h"

#include <algorithm>

namespace kapsule::crypt {
namespace {

constexpr size_t kMaxText = 16 * 1024;
constexpr size_t kMaxMembers = 64;
constexpr int kMaxDepth = 16;

// Walks over `text`; each Skip function is true where what it names stood at the
// position, and leaves the position behind it.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}
  size_t position() const { return position_; }
  bool AtEnd() const { return position_ == text_.size(); }
  std::string_view From(size_t start) const { return text_.substr(start, position_ - start); }

  void SkipSpace() {
    while (!AtEnd() && std::string_view(" \t\r\n").find(text_[position_]) != std::string_view::npos)
      ++position_;
  }
  bool Skip(char c) {
    if (AtEnd() || text_[position_] != c) return false;
    ++position_;
    return true;
  }
  bool SkipString() {
    if (!Skip('"')) return false;
    while (!AtEnd()) {
      const char c = text_[position_++];
      if (c == '"') return true;
      if (static_cast<unsigned char>(c) < 0x20) return false;
      if (c == '\\') {
        if (AtEnd()) return false;
        ++position_;
      }
    }
    return false;
  }
  bool SkipValue(int depth) {
    if (depth > kMaxDepth || AtEnd()) return false;
    switch (text_[position_]) {
      case '"':
        return SkipString();
      case '{':
        return SkipList('{', '}', depth);
      case '[':
        return SkipList('[', ']', depth);
      default:
        return SkipWord();
    }
  }

 private:
  bool SkipList(char open, char close, int depth) {
    Skip(open);
    SkipSpace();
    if (Skip(close)) return true;
    do {
      SkipSpace();
      if (open == '{') {
        if (!SkipString()) return false;
        SkipSpace();
        if (!Skip(':')) return false;
        SkipSpace();
      }
      if (!SkipValue(depth + 1)) return false;
      SkipSpace();
    } while (Skip(','));
    return Skip(close);
  }
  // true, false, null or a number.
  bool SkipWord() {
    const size_t start = position_;
    constexpr std::string_view kWord = "0123456789+-.abcdefghijklmnopqrstuvwxyzE";
    while (!AtEnd() && kWord.find(text_[position_]) != std::string_view::npos) ++position_;
    const std::string_view word = From(start);
    if (word == "true" || word == "false" || word == "null") return true;
    return !word.empty() && (word[0] == '-' || (word[0] >= '0' && word[0] <= '9')) &&
           word.find_first_not_of("0123456789+-.eE") == std::string_view::npos;
  }

  const std::string_view text_;
  size_t position_ = 0;
};

absl::Status NotAnObject(const Scanner& scanner) {
  return InvalidArgument("not a JSON object, at byte {}", scanner.position());
}

}  // namespace

absl::StatusOr<std::vector<JsonMember>> ScanJsonObject(std::string_view json) {
  if (json.size() > kMaxText)
    return InvalidArgument("{} bytes of JSON, more than {}", json.size(), kMaxText);
  Scanner scanner(json);
  std::vector<JsonMember> members;
  scanner.SkipSpace();
  if (!scanner.Skip('{')) return NotAnObject(scanner);
  scanner.SkipSpace();
  bool closed = scanner.Skip('}');
  while (!closed) {
    scanner.SkipSpace();
    size_t start = scanner.position();
    if (!scanner.SkipString()) return NotAnObject(scanner);
    const std::string_view quoted = scanner.From(start);
    const std::string_view name = quoted.substr(1, quoted.size() - 2);
    scanner.SkipSpace();
    if (!scanner.Skip(':')) return NotAnObject(scanner);
    scanner.SkipSpace();
    start = scanner.position();
    if (!scanner.SkipValue(1)) return NotAnObject(scanner);
    const std::string_view value = scanner.From(start);
    if (members.size() == kMaxMembers) return InvalidArgument("more than {} members", kMaxMembers);
    if (std::any_of(members.begin(), members.end(),
                    [&](const JsonMember& other) { return other.name == name; }))
      return InvalidArgument("a member stands twice, at byte {}", start);
    members.push_back({name, value});
    scanner.SkipSpace();
    closed = scanner.Skip('}');
    if (!closed && !scanner.Skip(',')) return NotAnObject(scanner);
  }
  scanner.SkipSpace();
  if (!scanner.AtEnd()) return NotAnObject(scanner);
  return members;
}

std::optional<std::string_view> FindValue(const std::vector<JsonMember>& members,
                                          std::string_view name) {
  for (const JsonMember& member : members)
    if (member.name == name && member.value != "null") return member.value;
  return std::nullopt;
}

absl::StatusOr<std::string_view> PlainString(std::string_view value) {
  if (value.size() < 2 || value.front() != '"') return InvalidArgument("not a string");
  const std::string_view text = value.substr(1, value.size() - 2);
  if (text.find('\\') != std::string_view::npos) return InvalidArgument("a string with escapes");
  return text;
}

}  // namespace kapsule::crypt
