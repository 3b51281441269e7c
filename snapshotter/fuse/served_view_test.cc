#include "snapshotter/fuse/served_view.h"

#include <gtest/gtest.h>

#include "snapshotter/fuse/test_views.h"

namespace kapsule::fuse {
namespace {

using testing::DigestStarting;

// A view without key of `made`'s layer.
ViewPtr WithoutKey(const testing::TestView& made) {
  return std::make_shared<const ServedView>(
      made.view->digest(),
      view::Image::Make(made.layer.toc, made.layer.header.tar_length, true).value());
}

TEST(ServedViewTest, WhoWaitsForTheKeyIsCalledOnceWhenItComes) {
  const auto made = testing::MakeTestView(DigestStarting("ab"), 1000);
  const ViewPtr view = WithoutKey(*made);
  EXPECT_EQ(view->layer(), nullptr);
  int called = 0;
  view->WhenDecided([&] { ++called; });
  view->WhenDecided([&] { called += view->layer() != nullptr; });
  EXPECT_EQ(called, 0);
  ASSERT_TRUE(view->SetLayer(made->view->layer()).ok());
  EXPECT_EQ(called, 2);
  view->WhenDecided([&] { ++called; });
  EXPECT_EQ(called, 3) << "at once";
  ASSERT_TRUE(view->SetLayer(made->view->layer()).ok());
  view->FailLayer(Unavailable("too late"));
  EXPECT_EQ(called, 3);
  EXPECT_EQ(view->layer(), made->view->layer());
}

TEST(ServedViewTest, AKeyMayComeAfterItHasFailed) {
  const auto made = testing::MakeTestView(DigestStarting("ab"), 1000);
  const ViewPtr view = WithoutKey(*made);
  int called = 0;
  view->WhenDecided([&] { ++called; });
  view->FailLayer(Unavailable("nobody there"));
  EXPECT_EQ(called, 1);
  view->WhenDecided([&] { ++called; });
  EXPECT_EQ(called, 2) << "reads fail at once";
  EXPECT_EQ(view->layer(), nullptr);
  ASSERT_TRUE(view->SetLayer(made->view->layer()).ok());
  EXPECT_NE(view->layer(), nullptr);
}

TEST(ServedViewTest, TheLayerOfAnotherImageIsRefused) {
  const auto made = testing::MakeTestView(DigestStarting("ab"), 1000);
  const auto other = testing::MakeTestView(DigestStarting("cd"), 100'000);
  const ViewPtr view = WithoutKey(*made);
  EXPECT_TRUE(absl::IsInvalidArgument(view->SetLayer(other->view->layer())));
  EXPECT_EQ(view->layer(), nullptr);
}

}  // namespace
}  // namespace kapsule::fuse
