#include "core/oci/digest.h"

#include <gtest/gtest.h>

namespace kapsule::oci {
namespace {

// FIPS 180-2, appendix B.1.
constexpr char kAbc[] = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
constexpr char kEmpty[] = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

TEST(DigestTest, AgreesWithTheStandard) {
  EXPECT_EQ(Digest::Of(AsBytes("abc")).text(), kAbc);
  EXPECT_EQ(Digest::Of({}).text(), kEmpty);
}

TEST(DigestTest, TextAndBackIsTheSame) {
  const Digest digest = Digest::Parse(kAbc).value();
  EXPECT_EQ(digest.text(), kAbc);
  EXPECT_EQ(digest, Digest::Of(AsBytes("abc")));
  EXPECT_NE(digest, Digest());
}

TEST(DigestTest, RefusesEveryOtherSpelling) {
  const std::string text = kAbc;
  for (size_t length = 0; length < text.size(); ++length)
    EXPECT_FALSE(Digest::Parse(text.substr(0, length)).ok()) << length;
  EXPECT_FALSE(Digest::Parse(text + "0").ok());
  EXPECT_FALSE(Digest::Parse("sha512:" + text.substr(7)).ok());
  EXPECT_FALSE(Digest::Parse("SHA256:" + text.substr(7)).ok());
  std::string upper = text;
  upper[7] = 'B';
  EXPECT_FALSE(Digest::Parse(upper).ok());
  EXPECT_FALSE(Digest::Parse(" " + text.substr(1)).ok());
}

TEST(HasherTest, PiecesGiveTheDigestOfTheWhole) {
  const std::string text(100000, 'k');
  for (const size_t piece : {1, 63, 64, 65, 4096}) {
    Hasher hasher;
    for (size_t at = 0; at < text.size(); at += piece)
      hasher.Update(AsBytes(std::string_view(text).substr(at, piece)));
    EXPECT_EQ(hasher.Finish(), Digest::Of(AsBytes(text))) << piece;
  }
}

TEST(HasherTest, MovesItsState) {
  Hasher first;
  first.Update(AsBytes("a"));
  Hasher second = std::move(first);
  second.Update(AsBytes("b"));
  first = Hasher();
  first = std::move(second);
  first.Update(AsBytes("c"));
  EXPECT_EQ(first.Finish().text(), kAbc);
}

TEST(ChainIdsTest, FollowsTheImageSpecification) {
  const Digest a = Digest::Of(AsBytes("a")), b = Digest::Of(AsBytes("b")),
               c = Digest::Of(AsBytes("c"));
  const std::vector<Digest> chain = ChainIds({a, b, c});
  ASSERT_EQ(chain.size(), 3u);
  EXPECT_EQ(chain[0], a);
  EXPECT_EQ(chain[1], Digest::Of(AsBytes(a.text() + " " + b.text())));
  EXPECT_EQ(chain[2], Digest::Of(AsBytes(chain[1].text() + " " + c.text())));
  EXPECT_TRUE(ChainIds({}).empty());
}

}  // namespace
}  // namespace kapsule::oci
