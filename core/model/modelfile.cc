#include "core/model/modelfile.h"

#include <algorithm>
#include <array>

#include "core/base/printable.h"
#include "core/model/modelfile_parameters.h"
#include "core/model/modelfile_text.h"

namespace kapsule::model {
namespace {

constexpr char kCommandError[] =
    "command must be one of \"from\", \"license\", \"template\", \"system\", \"adapter\", "
    "\"draft\", \"renderer\", \"parser\", \"parameter\", \"message\", or \"requires\"";
constexpr char kRoleError[] = "message role must be one of \"system\", \"user\", or \"assistant\"";
constexpr std::array<std::string_view, 11> kCommands = {
    "from",     "license", "template",  "system",  "adapter", "draft",
    "renderer", "parser",  "parameter", "message", "requires"};
constexpr std::array<std::string_view, 6> kNotYet = {"draft",    "renderer", "parser",
                                                     "requires", "dataset",  "document"};

bool IsNewline(char c) { return c == '\r' || c == '\n'; }
bool IsBlank(char c) { return c == ' ' || c == '\t'; }
bool IsSpace(char c) { return IsBlank(c) || IsNewline(c) || c == '\v' || c == '\f'; }
bool IsAlpha(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool IsWordChar(char c) { return IsAlpha(c) || (c >= '0' && c <= '9') || c == '_'; }

template <size_t N>
bool Contains(const std::array<std::string_view, N>& words, std::string_view word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

// The value without its quotes; nullopt while a quote is open.
std::optional<std::string_view> Unquote(std::string_view value) {
  for (const std::string_view quote : {"\"\"\"", "\""}) {
    if (!value.starts_with(quote)) continue;
    if (value.size() < 2 * quote.size() || !value.ends_with(quote)) return std::nullopt;
    return value.substr(quote.size(), value.size() - 2 * quote.size());
  }
  return value;
}

// One instruction as it stands.
struct Instruction {
  std::string name;  // lower case
  std::string word;  // of PARAMETER and MESSAGE: the name or role
  std::string value;
  int line = 0;  // of its first character
  Modelfile::Range range{};
};

// Splits the text into instructions, as Ollama's state machine does.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  // nullopt at the end of the text.
  absl::StatusOr<std::optional<Instruction>> Next() {
    SkipBlanksAndComments();
    if (at_ == text_.size()) return std::optional<Instruction>();
    Instruction instruction;
    instruction.line = line_;
    instruction.range.begin = at_;
    RETURN_IF_ERROR(ReadName(instruction));
    if (instruction.name == "parameter") RETURN_IF_ERROR(ReadWord(instruction, IsWordChar));
    if (instruction.name == "message") RETURN_IF_ERROR(ReadWord(instruction, IsAlpha));
    RETURN_IF_ERROR(ReadValue(instruction));
    return std::optional<Instruction>(std::move(instruction));
  }

 private:
  void Step() {
    if (IsNewline(text_[at_])) ++line_;
    ++at_;
  }

  void SkipBlanksAndComments() {
    while (at_ < text_.size()) {
      if (text_[at_] == '#') {
        while (at_ < text_.size() && !IsNewline(text_[at_])) ++at_;
      } else if (IsBlank(text_[at_]) || IsNewline(text_[at_])) {
        Step();
      } else {
        return;
      }
    }
  }

  absl::Status CommandError() const {
    // Ollama counts the line end that it has just read.
    const bool newline = at_ < text_.size() && IsNewline(text_[at_]);
    return InvalidArgument("(line {}): {}", line_ + newline, kCommandError);
  }

  absl::Status ReadName(Instruction& instruction) {
    // Ollama looks at the first character only when the second has come.
    const size_t begin = at_++;
    while (at_ < text_.size() && IsAlpha(text_[at_])) ++at_;
    if (at_ == text_.size()) return InvalidArgument("unexpected EOF");
    if (!IsBlank(text_[at_])) return CommandError();
    instruction.name = std::string(text_.substr(begin, at_ - begin));
    for (char& c : instruction.name)
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (Contains(kNotYet, instruction.name)) return NotYet(instruction);
    if (!Contains(kCommands, instruction.name)) return CommandError();
    ++at_;
    return absl::OkStatus();
  }

  static absl::Status NotYet(const Instruction& instruction) {
    std::string upper = instruction.name;
    for (char& c : upper) c = static_cast<char>(c - 'a' + 'A');
    return Unimplemented("(line {}): {} is not supported yet", instruction.line, upper);
  }

  absl::Status ReadWord(Instruction& instruction, bool (*belongs)(char)) {
    const size_t begin = at_;
    while (at_ < text_.size() && belongs(text_[at_])) ++at_;
    instruction.word = std::string(text_.substr(begin, at_ - begin));
    if (at_ == text_.size()) return InvalidArgument("unexpected EOF");
    if (!IsBlank(text_[at_]))
      return InvalidArgument("unexpected EOF: {}", Printable(instruction.word));
    if (instruction.name == "message" && instruction.word != "system" &&
        instruction.word != "user" && instruction.word != "assistant")
      return InvalidArgument("(line {}): {}", line_, kRoleError);
    ++at_;
    return absl::OkStatus();
  }

  // Up to a line end where no quote is open. Keeps the bounds of the trimmed
  // value as it goes, so that many lines cost no more than their length.
  absl::Status ReadValue(Instruction& instruction) {
    size_t begin = text_.size(), end = 0;
    for (;; Step()) {
      for (; at_ < text_.size() && !IsNewline(text_[at_]); ++at_) {
        if (IsSpace(text_[at_])) continue;
        begin = std::min(begin, at_);
        end = at_ + 1;
      }
      const std::string_view so_far = begin < end ? text_.substr(begin, end - begin) : "";
      if (const std::optional<std::string_view> value = Unquote(so_far)) {
        instruction.value = std::string(*value);
        instruction.range.end = at_;
        return absl::OkStatus();
      }
      if (at_ == text_.size()) return InvalidArgument("unexpected EOF");
    }
  }

  const std::string_view text_;
  size_t at_ = 0;
  int line_ = 1;
};

void Replace(std::optional<std::string>& target, Instruction& instruction, const char* name,
             std::vector<std::string>& warnings) {
  if (target.has_value())
    warnings.push_back(
        fmt::format("(line {}): {} replaces an earlier one", instruction.line, name));
  target = std::move(instruction.value);
}

absl::Status AddParameter(Instruction& instruction, Modelfile& modelfile) {
  absl::StatusOr<ParameterValue> value = ParseParameter(instruction.word, instruction.value);
  if (!value.ok()) return Annotate(value.status(), fmt::format("(line {})", instruction.line));
  ParameterValue& target = modelfile.parameters[instruction.word];
  auto* list = std::get_if<std::vector<std::string>>(&target);
  if (list != nullptr && std::holds_alternative<std::vector<std::string>>(*value))
    list->push_back(instruction.value);
  else
    target = *std::move(value);
  return absl::OkStatus();
}

absl::Status Add(Instruction instruction, Modelfile& modelfile) {
  const std::string name = instruction.name;
  if (name == "from") {
    modelfile.from.push_back({instruction.value, instruction.line});
    modelfile.from_ranges.push_back(instruction.range);
  } else if (name == "adapter") {
    modelfile.adapters.push_back({instruction.value, instruction.line});
    modelfile.adapter_ranges.push_back(instruction.range);
  } else if (name == "template") {
    Replace(modelfile.template_text, instruction, "TEMPLATE", modelfile.warnings);
  } else if (name == "system") {
    Replace(modelfile.system, instruction, "SYSTEM", modelfile.warnings);
  } else if (name == "license") {
    modelfile.licenses.push_back(std::move(instruction.value));
  } else if (name == "message") {
    modelfile.messages.push_back({instruction.word, std::move(instruction.value)});
  } else if (IsDeprecatedParameter(instruction.word)) {
    modelfile.warnings.push_back(fmt::format("(line {}): parameter {} is deprecated and dropped",
                                             instruction.line, instruction.word));
  } else {
    return AddParameter(instruction, modelfile);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Modelfile> ParseModelfile(std::string_view bytes) {
  if (bytes.size() > kMaxModelfileBytes)
    return InvalidArgument("the Modelfile has {} bytes, more than the limit of {}", bytes.size(),
                           kMaxModelfileBytes);
  Modelfile modelfile;
  ASSIGN_OR_RETURN(modelfile.text, DecodeText(bytes));
  Scanner scanner(modelfile.text);
  while (true) {
    ASSIGN_OR_RETURN(std::optional<Instruction> instruction, scanner.Next());
    if (!instruction.has_value()) break;
    RETURN_IF_ERROR(Add(*std::move(instruction), modelfile));
  }
  if (modelfile.from.empty()) return InvalidArgument("no FROM line");
  return modelfile;
}

}  // namespace kapsule::model
