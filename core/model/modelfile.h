// Ollama's Modelfile: the grammar and the meaning of its instructions
// (ollama parser/parser.go, api/types.go).
//
// Two deliberate differences from Ollama: characters that it calls not
// printable (zero-width joiners, no-break spaces, …) are kept, since dropping
// them changes the author's text; NUL is refused. And what is not supported yet
// is an error, never ignored.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/base/status.h"

namespace kapsule::model {

inline constexpr size_t kMaxModelfileBytes = 16 << 20;

// The types of Ollama's options: int, float32, bool and []string.
using ParameterValue = std::variant<int64_t, float, bool, std::vector<std::string>>;

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

// A path or model name and where it stands.
struct Location {
  std::string value;  // FROM only: empty means the Modelfile's own directory
  int line = 0;       // as Ollama counts: CRLF is two lines
};

struct Modelfile {
  std::vector<Location> from;                        // at least one, in order
  std::vector<Location> adapters;                    // in order; the last one wins
  std::optional<std::string> template_text, system;  // the last one wins
  std::vector<std::string> licenses;
  std::map<std::string, ParameterValue> parameters;  // "stop" collects
  std::vector<ChatMessage> messages;
  std::vector<std::string> warnings;  // deprecated or replaced instructions

  // The Modelfile as UTF-8 without byte order mark, and where the FROM and
  // ADAPTER instructions stand in it.
  struct Range {
    size_t begin, end;  // without the line end
  };
  std::string text;
  std::vector<Range> from_ranges, adapter_ranges;
};

// Parses a Modelfile in UTF-8 or, with a byte order mark, UTF-16.
//   InvalidArgument  Ollama's own error texts: "(line 3): command must be one of …",
//                    "no FROM line", "unexpected EOF", "unknown parameter 'x'";
//                    or longer than kMaxModelfileBytes, or a NUL
//   Unimplemented    "(line 3): RENDERER is not supported yet"
absl::StatusOr<Modelfile> ParseModelfile(std::string_view bytes);

}  // namespace kapsule::model
