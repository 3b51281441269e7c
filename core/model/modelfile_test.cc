#include "core/model/modelfile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kapsule::model {
namespace {
using testing::ElementsAre;

Modelfile Parse(const std::string& text) {
  auto modelfile = ParseModelfile(text);
  EXPECT_TRUE(modelfile.ok()) << modelfile.status();
  return modelfile.ok() ? *modelfile : Modelfile();
}
std::string ErrorOf(const std::string& text) { return Message(ParseModelfile(text).status()); }
// The SYSTEM value of a Modelfile that ends with `text`.
std::string SystemOf(const std::string& text) {
  return Parse("FROM x\nSYSTEM " + text).system.value_or("(none)");
}

constexpr char kCommandError[] =
    "command must be one of \"from\", \"license\", \"template\", \"system\", \"adapter\", "
    "\"draft\", \"renderer\", \"parser\", \"parameter\", \"message\", or \"requires\"";

TEST(ModelfileTest, ReadsEveryInstruction) {
  const Modelfile m = Parse(
      "# a comment\n  # another\n\nfrom ./model.gguf\nFrOm\tmmproj.gguf\nADAPTER ./lora.gguf\n"
      "TEMPLATE \"\"\"{{ .System }}\n{{ .Prompt }}\"\"\"\nSYSTEM You are brain.\n"
      "LICENSE MIT\nLICENSE \"\"\"\nsecond\n\"\"\"\nMESSAGE user hi: there\n"
      "MESSAGE assistant \"\"\"hello\"\"\"\nPARAMETER stop <|im_start|>\nPARAMETER stop \"a b\"\n"
      "PARAMETER temperature 0.2\nPARAMETER seed -7\nPARAMETER use_mmap T\n");
  ASSERT_EQ(m.from.size(), 2U);
  EXPECT_EQ(m.from[0].value, "./model.gguf");
  EXPECT_EQ(m.from[0].line, 4);
  EXPECT_EQ(m.from[1].value, "mmproj.gguf");
  EXPECT_EQ(m.adapters.at(0).value, "./lora.gguf");
  EXPECT_EQ(m.template_text, "{{ .System }}\n{{ .Prompt }}");
  EXPECT_EQ(m.system, "You are brain.");
  EXPECT_THAT(m.licenses, ElementsAre("MIT", "\nsecond\n"));
  ASSERT_EQ(m.messages.size(), 2U);
  EXPECT_EQ(m.messages[0].role, "user");
  EXPECT_EQ(m.messages[0].content, "hi: there");
  EXPECT_EQ(m.messages[1].content, "hello");
  EXPECT_EQ(m.parameters.at("temperature"), ParameterValue(0.2F));
  EXPECT_EQ(m.parameters.at("seed"), ParameterValue(int64_t{-7}));
  EXPECT_EQ(m.parameters.at("use_mmap"), ParameterValue(true));
  EXPECT_EQ(m.parameters.at("stop"),
            ParameterValue(std::vector<std::string>{"<|im_start|>", "a b"}));
  EXPECT_TRUE(m.warnings.empty());
}

TEST(ModelfileTest, QuotesRunToALineThatEndsWithThem) {
  EXPECT_EQ(SystemOf("\"a\"b\""), "a\"b");
  EXPECT_EQ(SystemOf("\"multi\nline\" tail\""), "multi\nline\" tail");
  EXPECT_EQ(SystemOf("\"\"\"a\n\"\"\" b\n  \"\"\"  \nLICENSE x"), "a\n\"\"\" b\n  ");
  EXPECT_EQ(SystemOf("'single'"), "'single'");
  EXPECT_EQ(SystemOf("a \\\nLICENSE x"), "a \\");
  EXPECT_EQ(SystemOf("  spaces inside  stay \t"), "spaces inside  stay");
  EXPECT_EQ(SystemOf("\"\""), "");
  EXPECT_EQ(SystemOf(" "), "");
  EXPECT_EQ(SystemOf("$HOME # no comment"), "$HOME # no comment");
  EXPECT_EQ(SystemOf("\"a\r\nb\""), "a\r\nb");
  EXPECT_EQ(ErrorOf("FROM x\nSYSTEM \"\"\"x\"\"\" trailing\nLICENSE y"), "unexpected EOF");
  EXPECT_EQ(ErrorOf("FROM x\nSYSTEM \"\"\"\"\""), "unexpected EOF");
  EXPECT_EQ(ErrorOf("FROM x\nSYSTEM \""), "unexpected EOF");
}

TEST(ModelfileTest, KeepsCharactersThatOllamaDrops) {
  EXPECT_EQ(SystemOf("a\u00A0b"), "a\u00A0b");
  EXPECT_EQ(SystemOf("\U0001F468\u200D\U0001F469"), "\U0001F468\u200D\U0001F469");
}

TEST(ModelfileTest, ErrorsAreOllamas) {
  EXPECT_EQ(ErrorOf("FROM x\nBAD y"), std::string("(line 2): ") + kCommandError);
  EXPECT_EQ(ErrorOf("\n\nFROM"), "unexpected EOF");
  // Ollama has counted the line end when it looks at the name.
  EXPECT_EQ(ErrorOf("FROM x\nBAD\n"), std::string("(line 3): ") + kCommandError);
  EXPECT_EQ(ErrorOf("FROM\n"), std::string("(line 2): ") + kCommandError);
  EXPECT_EQ(ErrorOf("FROM x\r\nBAD y"), std::string("(line 3): ") + kCommandError);
  EXPECT_EQ(ErrorOf("PARA_METER x"), std::string("(line 1): ") + kCommandError);
  EXPECT_EQ(ErrorOf("\u00E9 x"), std::string("(line 1): ") + kCommandError);
  EXPECT_EQ(ErrorOf("FROM x\nMESSAGE robot hi"),
            "(line 2): message role must be one of \"system\", \"user\", or \"assistant\"");
  EXPECT_EQ(ErrorOf("FROM x\nMESSAGE User hi"),
            "(line 2): message role must be one of \"system\", \"user\", or \"assistant\"");
  EXPECT_EQ(ErrorOf("FROM x\nMESSAGE user"), "unexpected EOF");
  EXPECT_EQ(ErrorOf("FROM x\nMESSAGE user\n"), "unexpected EOF: user");
  EXPECT_EQ(ErrorOf("FROM x\nPARAMETER stop"), "unexpected EOF");
  EXPECT_EQ(ErrorOf("FROM x\nPARAMETER stop\nSYSTEM y"), "unexpected EOF: stop");
  EXPECT_EQ(ErrorOf(""), "no FROM line");
  EXPECT_EQ(ErrorOf("# FROM x\nSYSTEM y\n"), "no FROM line");
}

TEST(ModelfileTest, ParametersAreCheckedByNameAndType) {
  const auto parameter = [](const std::string& text) {
    return ErrorOf("FROM x\nPARAMETER " + text);
  };
  EXPECT_EQ(parameter("tfs_z 1"), "(line 2): unknown parameter 'tfs_z'");
  EXPECT_EQ(parameter("Temperature 1"), "(line 2): unknown parameter 'Temperature'");
  EXPECT_EQ(parameter(" temperature 1"), "(line 2): unknown parameter ''");
  EXPECT_EQ(parameter("temperature 1 # x"), "(line 2): invalid float value [1 # x]");
  EXPECT_EQ(parameter("temperature 1e39"), "(line 2): invalid float value [1e39]");
  EXPECT_EQ(parameter("temperature inf"), "(line 2): invalid float value [inf]");
  EXPECT_EQ(parameter("temperature +-1"), "(line 2): invalid float value [+-1]");
  EXPECT_EQ(parameter("top_k 1.5"), "(line 2): invalid int value [1.5]");
  EXPECT_EQ(parameter("num_ctx 9223372036854775808"),
            "(line 2): invalid int value [9223372036854775808]");
  EXPECT_EQ(parameter("num_ctx "), "(line 2): invalid int value []");
  EXPECT_EQ(parameter("use_mmap yes"), "(line 2): invalid bool value [yes]");
  const Modelfile m = Parse(
      "FROM x\nPARAMETER seed +42\nPARAMETER seed 9223372036854775807\nPARAMETER top_p 1e-60\n"
      "PARAMETER min_p .5\nPARAMETER mirostat 1\n");
  EXPECT_EQ(m.parameters.at("seed"), ParameterValue(INT64_MAX));
  EXPECT_EQ(m.parameters.at("top_p"), ParameterValue(0.0F));
  EXPECT_EQ(m.parameters.at("min_p"), ParameterValue(0.5F));
  EXPECT_EQ(m.parameters.size(), 3U);
  EXPECT_THAT(m.warnings, ElementsAre("(line 6): parameter mirostat is deprecated and dropped"));
}

TEST(ModelfileTest, WhatIsNotSupportedSaysSo) {
  for (const char* name : {"RENDERER", "PARSER", "REQUIRES", "DRAFT", "DATASET", "DOCUMENT"}) {
    const auto modelfile = ParseModelfile(fmt::format("FROM x\n\n{} y\n", name));
    EXPECT_EQ(modelfile.status().code(), absl::StatusCode::kUnimplemented) << name;
    EXPECT_EQ(Message(modelfile.status()), fmt::format("(line 3): {} is not supported yet", name));
  }
}

TEST(ModelfileTest, TheLastOfSeveralWinsWithAWarning) {
  const Modelfile m = Parse("FROM x\nSYSTEM a\nSYSTEM b\nADAPTER c\nADAPTER d\n");
  EXPECT_EQ(m.system, "b");
  EXPECT_EQ(m.adapters.back().value, "d");
  EXPECT_THAT(m.warnings, ElementsAre("(line 3): SYSTEM replaces an earlier one"));
}

std::string Utf16(const std::u16string& text, bool big_endian) {
  std::string bytes = big_endian ? "\xFE\xFF" : "\xFF\xFE";
  for (const char16_t c : text) {
    const char low = static_cast<char>(c & 0xFF), high = static_cast<char>(c >> 8);
    bytes += big_endian ? std::string{high, low} : std::string{low, high};
  }
  return bytes;
}

TEST(ModelfileTest, ByteOrderMarksAreUnderstood) {
  EXPECT_EQ(Parse("\xEF\xBB\xBF"
                  "FROM x")
                .from[0]
                .value,
            "x");
  for (const bool big_endian : {false, true}) {
    EXPECT_EQ(Parse(Utf16(u"FROM \u00E9\U0001F600", big_endian)).from[0].value, "\u00E9\U0001F600");
    const char16_t lone[] = {u'F', u'R', u'O', u'M', u' ', 0xD800, u'x', 0};
    EXPECT_EQ(Parse(Utf16(lone, big_endian)).from[0].value, "\uFFFDx");
    EXPECT_EQ(Parse(Utf16(u"FROM x", big_endian) + "y").from[0].value, "x\uFFFD");
  }
}

TEST(ModelfileTest, BytesThatAreNotUtf8BecomeReplacementCharacters) {
  EXPECT_EQ(SystemOf("a\xFF\xC0\xAF\xED\xA0\x80z"), "a\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDz");
  EXPECT_EQ(SystemOf("cut\xE2\x82"), "cut\uFFFD\uFFFD");
}

TEST(ModelfileTest, NulAndSizeAreRefused) {
  EXPECT_EQ(ErrorOf(std::string("FROM x\nSYSTEM a\0b", 16)),
            "(line 2): a NUL byte: not a text file, or UTF-16 without byte order mark");
  const std::string head = "FROM x\nSYSTEM ";
  EXPECT_TRUE(ParseModelfile(head + std::string(kMaxModelfileBytes - head.size(), 'a')).ok());
  EXPECT_FALSE(ParseModelfile(head + std::string(kMaxModelfileBytes - head.size() + 1, 'a')).ok());
}

TEST(ModelfileTest, ManyLinesInAnOpenQuoteCostLinearTime) {
  EXPECT_EQ(ErrorOf("FROM x\nSYSTEM \"" + std::string(8 << 20, '\n')), "unexpected EOF");
}

TEST(ModelfileTest, EveryTruncationIsParsedOrRefused) {
  const std::string text =
      "FROM ./m.gguf\nTEMPLATE \"\"\"{{ .Prompt }}\n\"\"\"\nPARAMETER stop \"x\"\nMESSAGE user "
      "hi\n";
  EXPECT_FALSE(ParseModelfile(text.substr(0, 4)).ok());
  for (size_t n = 0; n <= text.size(); ++n) {
    const auto modelfile = ParseModelfile(text.substr(0, n));
    if (modelfile.ok()) {
      EXPECT_EQ(modelfile->from.size(), 1U) << n;
    } else {
      EXPECT_EQ(modelfile.status().code(), absl::StatusCode::kInvalidArgument) << n;
    }
  }
}

}  // namespace
}  // namespace kapsule::model
