#include "core/base/printable.h"

#include <gtest/gtest.h>

namespace kapsule {
namespace {

TEST(PrintableTest, ControlCharactersAreReplaced) {
  EXPECT_EQ(Printable("a\x1B[31m\n\x7F\u00E9"), "a?[31m??\u00E9");
}

TEST(PrintableTest, LongTextIsCutBetweenCharacters) {
  EXPECT_EQ(Printable(std::string(200, 'a')), std::string(200, 'a'));
  EXPECT_EQ(Printable(std::string(201, 'a')), std::string(200, 'a') + "…");
  EXPECT_EQ(Printable(std::string(199, 'a') + "\u00E9x"), std::string(199, 'a') + "…");
  EXPECT_EQ(Printable(std::string(500, '\x80')), "…");
}

TEST(PrintableTest, AsciiIsAllThatAsciiTextHolds) {
  EXPECT_EQ(PrintableAscii("a\x1B\n~\x7F\u00E9\xFF", 100), "a??~????");
  EXPECT_EQ(PrintableAscii("abc", 2), "ab");
}

}  // namespace
}  // namespace kapsule
