#include "core/oci/reference.h"

#include <gtest/gtest.h>

namespace kapsule::oci {
namespace {

std::string Hex64() { return Digest::Of({}).text(); }

TEST(ReferenceTest, ReadsAHostWithPort) {
  const Reference reference = Reference::Parse("127.0.0.1:5000/acme/tiny:enc").value();
  EXPECT_EQ(reference.host, "127.0.0.1:5000");
  EXPECT_EQ(reference.repository, "acme/tiny");
  EXPECT_EQ(reference.tag, "enc");
  EXPECT_FALSE(reference.digest);
  EXPECT_EQ(reference.version(), "enc");
  EXPECT_EQ(reference.text(), "127.0.0.1:5000/acme/tiny:enc");
}

TEST(ReferenceTest, FillsInWhatDockerFillsIn) {
  const std::pair<const char*, const char*> cases[] = {
      {"busybox", "docker.io/library/busybox:latest"},
      {"acme/tiny", "docker.io/acme/tiny:latest"},
      {"docker.io/busybox:1", "docker.io/library/busybox:1"},
      {"index.docker.io/busybox", "docker.io/library/busybox:latest"},
      {"localhost/tiny", "localhost/tiny:latest"},
      {"localhost:5000/tiny", "localhost:5000/tiny:latest"},
      {"[::1]:5000/tiny", "[::1]:5000/tiny:latest"},
      {"ghcr.io/acme/models/tiny-7b_q4:v1.0", "ghcr.io/acme/models/tiny-7b_q4:v1.0"},
      {"REGISTRY/tiny", "REGISTRY/tiny:latest"},
      {"a.b/c__d/e---f", "a.b/c__d/e---f:latest"},
  };
  for (const auto& [name, text] : cases) {
    const absl::StatusOr<Reference> reference = Reference::Parse(name);
    ASSERT_TRUE(reference.ok()) << name << ": " << reference.status();
    EXPECT_EQ(reference->text(), text);
  }
}

TEST(ReferenceTest, TheDigestOutranksTheTag) {
  const Reference both = Reference::Parse("h.io/a:t@" + Hex64()).value();
  EXPECT_EQ(both.tag, "t");
  EXPECT_EQ(both.version(), Hex64());
  const Reference digest = Reference::Parse("h.io/a@" + Hex64()).value();
  EXPECT_EQ(digest.tag, "");
  EXPECT_EQ(digest.text(), "h.io/a@" + Hex64());
}

TEST(ReferenceTest, RefusesWhatIsNoName) {
  for (const std::string name :
       {"",         ":",          "/",       "a/",       "/a",           "a//b",
        "A",        "acme/Tiny",  "a:",      "a:-t",     "a:.t",         "a b",
        "a@",       "a@sha256:0", "a..b",    "a___b",    "-a",           "a-",
        "a._b",     "h.io/",      "h.io:/a", "h.io:x/a", "h.io:99999/a", "-h.io/a",
        "h..io/a",  "[::1/a",     "[x]:1/a", "a/../b",   "u:p@h.io/a",   "http://h.io/a",
        "h.io/a?b", "h.io/a%2f",  "a\n"})
    EXPECT_FALSE(Reference::Parse(name).ok()) << name;
}

TEST(ReferenceTest, KeepsTheLengthLimits) {
  EXPECT_TRUE(Reference::Parse("a:" + std::string(128, 't')).ok());
  EXPECT_FALSE(Reference::Parse("a:" + std::string(129, 't')).ok());
  EXPECT_TRUE(Reference::Parse("h.io/" + std::string(250, 'a')).ok());
  EXPECT_FALSE(Reference::Parse("h.io/" + std::string(251, 'a')).ok());
  EXPECT_FALSE(Reference::Parse(std::string(100000, 'a')).ok());
}

}  // namespace
}  // namespace kapsule::oci
