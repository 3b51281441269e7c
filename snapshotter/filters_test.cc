#include "snapshotter/filters.h"

#include <gmock/gmock.h>

namespace kapsule::snapshotter {
namespace {

const Info kInfo{"sha256:ab",
                 "k8s.io/2/sha256:cd",
                 Kind::kCommitted,
                 1,
                 1,
                 {{"containerd.io/snapshot.ref", "sha256:ab"}, {"a.b", "c d"}, {"quote", "\"\n"}}};

bool Matches(const std::vector<std::string>& filters, const Info& info = kInfo) {
  const absl::StatusOr<Filters> parsed = Filters::Parse(filters);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.ok() && parsed->Match(info);
}

TEST(FiltersTest, NoFilterMatchesEverything) {
  EXPECT_TRUE(Matches({}));
  EXPECT_TRUE(Matches({""}));
}

TEST(FiltersTest, ContainerdFindsARemoteSnapshotByRefAndParent) {
  EXPECT_TRUE(
      Matches({R"(labels."containerd.io/snapshot.ref"==sha256:ab,parent=="k8s.io/2/sha256:cd")"}));
  EXPECT_FALSE(Matches({R"(labels."containerd.io/snapshot.ref"==sha256:ab,parent=="")"}));
  EXPECT_FALSE(Matches({R"(labels."containerd.io/snapshot.ref"==sha256:ac)"}));
  Info bottom = kInfo;
  bottom.parent = "";
  EXPECT_TRUE(Matches({R"(labels."containerd.io/snapshot.ref"==sha256:ab,parent=="")"}, bottom));
}

TEST(FiltersTest, CommasAreAndStringsAreOr) {
  EXPECT_FALSE(Matches({"name==sha256:ab,kind==active"}));
  EXPECT_TRUE(Matches({"kind==active", "name==sha256:ab"}));
  EXPECT_FALSE(Matches({"kind==active", "kind==view"}));
  EXPECT_TRUE(Matches({" kind == committed , name == sha256:ab "}));
}

TEST(FiltersTest, EachKindHasItsWord) {
  Info info = kInfo;
  info.kind = Kind::kActive;
  EXPECT_TRUE(Matches({"kind==active"}, info));
  info.kind = Kind::kView;
  EXPECT_TRUE(Matches({"kind==view"}, info));
}

TEST(FiltersTest, PresenceAndInequality) {
  EXPECT_TRUE(Matches({"labels.a.b"}));
  EXPECT_TRUE(Matches({R"(labels."a.b")"}));
  EXPECT_FALSE(Matches({"labels.none"}));
  EXPECT_FALSE(Matches({"unknown"}));
  EXPECT_TRUE(Matches({"labels.none!=x"}));
  EXPECT_FALSE(Matches({"labels.none==x"}));
  EXPECT_FALSE(Matches({"kind!=committed"}));
}

TEST(FiltersTest, QuotedValuesTakeGoEscapes) {
  EXPECT_TRUE(Matches({R"(labels.a.b=="c d")"}));
  EXPECT_TRUE(Matches({R"(labels.quote=="\"\n")"}));
  EXPECT_TRUE(Matches({R"(labels.quote=="\x22\012")"}));
  EXPECT_TRUE(Matches({R"(labels.quote=="\u0022\U0000000a")"}));
  Info info = kInfo;
  info.labels["u"] = "\u00e9\u20ac\U0001f600";
  EXPECT_TRUE(Matches({R"(labels.u=="\u00e9\u20ac\U0001f600")"}, info));
}

TEST(FiltersTest, RegularExpressions) {
  EXPECT_TRUE(Matches({"name~=^sha256:[a-f]+$"}));
  EXPECT_TRUE(Matches({"name~=/256:a/"}));
  EXPECT_TRUE(Matches({"name~=|256:a|"}));
  EXPECT_FALSE(Matches({"name~=\"^256\""}));
}

TEST(FiltersTest, APatternCannotTakeExponentialTime) {
  Info info = kInfo;
  info.name = std::string(3000, 'a');
  EXPECT_FALSE(Matches({"name~=\"^(a|a)*b$\""}, info));
}

TEST(FiltersTest, WrongFiltersSayWhere) {
  for (const char* filter :
       {",", "name==", "name=", "name===x", "==x", "name==x,", "name==x y", "labels.", "labels.\"a",
        "name==\"\\q\"", "name==\"\\400\"", "name==\"\\U00110000\"", "name==/x/", "name~=(",
        "name~=\"\\\\1(\"", "name=~x", "a\x01", "name==\"\\x2"}) {
    const absl::StatusOr<Filters> parsed = Filters::Parse({"", filter});
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << filter;
    EXPECT_THAT(Message(parsed.status()), testing::HasSubstr("at byte ")) << filter;
  }
}

TEST(FiltersTest, LengthsAreBounded) {
  const auto name = [](size_t n) { return "name==" + std::string(n - 6, 'a'); };
  EXPECT_TRUE(Filters::Parse({name(64 * 1024)}).ok());
  EXPECT_FALSE(Filters::Parse({name(64 * 1024 + 1)}).ok());
  EXPECT_TRUE(Filters::Parse({"name~=" + std::string(1024, 'a')}).ok());
  EXPECT_FALSE(Filters::Parse({"name~=" + std::string(1025, 'a')}).ok());
}

TEST(FiltersTest, EveryTruncationIsAFilterOrAnError) {
  const std::string filter = R"(labels."a\x41\"\u1234/z"~=/a|b/ , name != "x",kind)";
  for (size_t n = 0; n < filter.size(); ++n) {
    const absl::StatusOr<Filters> parsed = Filters::Parse({filter.substr(0, n)});
    if (parsed.ok()) parsed->Match(kInfo);
    EXPECT_TRUE(parsed.ok() || absl::IsInvalidArgument(parsed.status())) << parsed.status();
  }
}

}  // namespace
}  // namespace kapsule::snapshotter
