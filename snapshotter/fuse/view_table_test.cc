#include "snapshotter/fuse/view_table.h"

#include <gtest/gtest.h>

#include "snapshotter/fuse/test_views.h"

namespace kapsule::fuse {
namespace {

using testing::DigestStarting;
using testing::MakeTestView;
using testing::TestView;

class ViewTableTest : public ::testing::Test {
 protected:
  absl::Status Publish(const TestView& made) {
    const ViewTable::Opening opening(table_, made.view->name());
    return table_.Publish(opening, made.view);
  }
  static uint64_t NodeOf(const TestView& made) { return ViewTable::NodeOf(made.view->name()); }

  ViewTable table_;
  const std::unique_ptr<TestView> a_ = MakeTestView(DigestStarting("aa"), 100);
};

TEST_F(ViewTableTest, ANodeComesFromTheDigestAlone) {
  const std::string zeros(64, '0');
  EXPECT_EQ(ViewTable::NodeOf(zeros), 0u);
  EXPECT_EQ(ViewTable::NodeOf("0000000000000004" + zeros.substr(16)), 0u);
  EXPECT_EQ(ViewTable::NodeOf("0000000000000006" + zeros.substr(16)), 3u);
  EXPECT_EQ(ViewTable::NodeOf(std::string(64, 'f')), UINT64_MAX >> 1);
  EXPECT_EQ(ViewTable::NodeOf(""), 0u);
  EXPECT_EQ(ViewTable::NodeOf(std::string(63, 'a')), 0u);
  EXPECT_EQ(ViewTable::NodeOf(std::string(64, 'A')), 0u);
}

TEST_F(ViewTableTest, APublishedViewIsFoundByNameAndNode) {
  EXPECT_EQ(table_.Listed(a_->view->name()), nullptr);
  ASSERT_TRUE(Publish(*a_).ok());
  EXPECT_EQ(table_.Listed(a_->view->name()), a_->view);
  EXPECT_EQ(table_.OfNode(NodeOf(*a_)), a_->view);
  EXPECT_EQ(table_.OfHandle(NodeOf(*a_)), nullptr);  // nobody has it open
  EXPECT_EQ(table_.List(0, 10).size(), 1u);
  EXPECT_TRUE(table_.List(NodeOf(*a_), 10).empty());
  EXPECT_TRUE(Publish(*a_).ok());
}

TEST_F(ViewTableTest, AWithdrawnViewLivesUntilItsLastHandleIsReleased) {
  ASSERT_TRUE(Publish(*a_).ok());
  const uint64_t node = NodeOf(*a_);
  ASSERT_TRUE(table_.OpenHandle(node));
  ASSERT_TRUE(table_.OpenHandle(node));
  table_.Withdraw(a_->view->name());
  EXPECT_EQ(table_.Listed(a_->view->name()), nullptr);
  EXPECT_TRUE(table_.List(0, 10).empty());
  EXPECT_FALSE(table_.OpenHandle(node));
  EXPECT_EQ(table_.OfHandle(node), a_->view);
  table_.ReleaseHandle(node);
  EXPECT_EQ(table_.Known(a_->view->name()), a_->view);
  table_.ReleaseHandle(node);
  EXPECT_EQ(table_.Known(a_->view->name()), nullptr);
  EXPECT_EQ(a_->view.use_count(), 1);  // freed
  table_.ReleaseHandle(node);          // once too often
}

TEST_F(ViewTableTest, AWithdrawalCancelsAnOpeningOnItsWay) {
  const ViewTable::Opening opening(table_, a_->view->name());
  const ViewTable::Opening other(table_, std::string(64, 'b'));
  table_.Withdraw(a_->view->name());
  EXPECT_EQ(table_.Publish(opening, a_->view).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(table_.Known(a_->view->name()), nullptr);
  EXPECT_TRUE(Publish(*a_).ok());  // one that began later
}

TEST_F(ViewTableTest, TheMetadataOfAllViewsTogetherIsBounded) {
  const auto b = MakeTestView(DigestStarting("bb"), 100), c = MakeTestView(DigestStarting("cc"), 1);
  const uint64_t bytes = a_->view->metadata_bytes();
  ASSERT_EQ(b->view->metadata_bytes(), bytes);
  ASSERT_EQ(c->view->metadata_bytes(), bytes);
  ViewTable table(2 * bytes);
  const auto publish = [&table](const TestView& made) {
    const ViewTable::Opening opening(table, made.view->name());
    return table.Publish(opening, made.view);
  };
  ASSERT_TRUE(publish(*a_).ok());
  ASSERT_TRUE(publish(*b).ok());
  EXPECT_TRUE(publish(*b).ok()) << "counted once";
  const absl::Status refused = publish(*c);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(Message(refused).find(fmt::format("is {}", 2 * bytes)), std::string::npos) << refused;
  EXPECT_EQ(table.Known(c->view->name()), nullptr);

  // What somebody has open still counts.
  ASSERT_TRUE(table.OpenHandle(NodeOf(*b)));
  table.Withdraw(b->view->name());
  EXPECT_EQ(publish(*c).code(), absl::StatusCode::kResourceExhausted);
  table.ReleaseHandle(NodeOf(*b));
  EXPECT_TRUE(publish(*c).ok());
  table.Withdraw(a_->view->name());
  EXPECT_TRUE(publish(*b).ok());
}

TEST_F(ViewTableTest, TwoViewsDoNotShareANameOrANode) {
  ASSERT_TRUE(Publish(*a_).ok());
  const auto same_name = MakeTestView(a_->view->digest(), 100);
  EXPECT_EQ(Publish(*same_name).code(), absl::StatusCode::kAlreadyExists);
  // Its first 63 bits are equal, its name is not.
  const auto same_node = MakeTestView(
      oci::Digest::Parse("sha256:" + a_->view->name().substr(0, 63) + "9").value(), 100);
  EXPECT_EQ(Publish(*same_node).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(table_.Listed(same_node->view->name()), nullptr);
  table_.Withdraw(same_node->view->name());  // takes nothing from the first
  EXPECT_EQ(table_.Listed(a_->view->name()), a_->view);
}

}  // namespace
}  // namespace kapsule::fuse
