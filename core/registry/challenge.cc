#include "core/registry/challenge.h"

#include <algorithm>
#include <optional>

namespace kapsule::registry {
namespace {

bool IsTokenChar(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}

std::string Lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 'a' - 'A');
  }
  return lower;
}

// Takes words off the front of a header value.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  void Skip(std::string_view characters) {
    text_.remove_prefix(std::min(text_.find_first_not_of(characters), text_.size()));
  }

  bool Take(char c) {
    if (text_.empty() || text_.front() != c) return false;
    text_.remove_prefix(1);
    return true;
  }

  std::string_view Token() {
    const auto end = std::find_if_not(text_.begin(), text_.end(), IsTokenChar);
    const std::string_view token = text_.substr(0, static_cast<size_t>(end - text_.begin()));
    text_.remove_prefix(token.size());
    return token;
  }

  // After the opening quote; nullopt where it is never closed.
  std::optional<std::string> QuotedRest() {
    std::string value;
    while (!text_.empty()) {
      if (Take('"')) return value;
      if (Take('\\') && text_.empty()) break;
      value += text_.front();
      text_.remove_prefix(1);
    }
    return std::nullopt;
  }

 private:
  std::string_view text_;
};

}  // namespace

std::vector<Challenge> ParseChallenges(std::string_view value) {
  std::vector<Challenge> challenges;
  Scanner scanner(value);
  for (;;) {
    scanner.Skip(" \t,");
    const std::string word = Lower(scanner.Token());
    if (word.empty()) return challenges;
    scanner.Skip(" \t");
    if (!scanner.Take('=')) {
      challenges.push_back({word, {}});
      continue;
    }
    if (challenges.empty()) return challenges;
    scanner.Skip(" \t");
    std::optional<std::string> text;
    if (scanner.Take('"')) {
      text = scanner.QuotedRest();
    } else {
      text = std::string(scanner.Token());
      if (text->empty()) text.reset();
    }
    if (!text) return challenges;
    challenges.back().params.emplace(word, *std::move(text));
  }
}

}  // namespace kapsule::registry
