#include "core/http/url.h"

#include <gtest/gtest.h>

#include "core/http/headers.h"

namespace kapsule::http {
namespace {

TEST(UrlTest, ResolvesALocation) {
  const std::string base = "https://h.io/v2/a/blobs/uploads/?x=1";
  EXPECT_EQ(ResolveUrl(base, "/v2/b?y=2").value(), "https://h.io/v2/b?y=2");
  EXPECT_EQ(ResolveUrl(base, "https://other.io:8443/z").value(), "https://other.io:8443/z");
  EXPECT_EQ(ResolveUrl(base, "//other.io/z").value(), "https://other.io/z");
  EXPECT_EQ(ResolveUrl(base, "../c").value(), "https://h.io/v2/a/blobs/c");
}

TEST(UrlTest, RefusesOtherSchemesUsersAndControlCharacters) {
  const std::string base = "https://h.io/";
  for (const std::string location :
       {"file:///etc/passwd", "ftp://h.io/a", "https://user:word@h.io/", "http://u@h.io/",
        "/a\r\nX: y", "/a b", "https://", "gopher://h.io/"})
    EXPECT_FALSE(ResolveUrl(base, location).ok()) << location;
  EXPECT_FALSE(ResolveUrl(base, "/" + std::string(kMaxUrlBytes, 'a')).ok());
}

TEST(UrlTest, EscapesWhatIsAddedToAQuery) {
  EXPECT_EQ(AddQuery("https://h.io/t?a=b", "scope", "repository:x/y:pull,push").value(),
            "https://h.io/t?a=b&scope=repository%3ax%2fy%3apull%2cpush");
  EXPECT_EQ(AddQuery("https://h.io/t", "service", "a&b c").value(),
            "https://h.io/t?service=a%26b%20c");
}

TEST(UrlTest, AnOriginIsSchemeHostAndPort) {
  EXPECT_TRUE(SameOrigin("https://h.io/a", "https://H.io:443/b"));
  EXPECT_FALSE(SameOrigin("https://h.io/a", "http://h.io/a"));
  EXPECT_FALSE(SameOrigin("https://h.io/a", "https://h.io:444/a"));
  EXPECT_FALSE(SameOrigin("https://h.io/a", "https://h.io.evil.io/a"));
  EXPECT_FALSE(SameOrigin("nonsense", "nonsense"));
}

TEST(UrlTest, MessagesShowNoQuery) {
  EXPECT_EQ(UrlForMessages("https://h.io/a?sig=SECRET#x"), "https://h.io/a");
}

TEST(HeadersTest, NamesAreComparedWithoutCase) {
  Headers headers{{"Location", "/a"}, {"WWW-Authenticate", "Basic"}};
  headers.Add("www-authenticate", "Bearer");
  EXPECT_EQ(headers.Find("location"), "/a");
  EXPECT_EQ(headers.FindAll("Www-Authenticate"), (std::vector<std::string>{"Basic", "Bearer"}));
  headers.Remove("WWW-AUTHENTICATE");
  EXPECT_EQ(headers.size(), 1u);
  EXPECT_EQ(headers.Find("Locatio"), std::nullopt);
}

}  // namespace
}  // namespace kapsule::http
