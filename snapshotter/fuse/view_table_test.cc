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
  void SetUp() override { table_.Restore({}); }
  static uint64_t NodeOf(const TestView& made) { return ViewTable::NodeOf(made.view->name()); }

  // That of the first view in the table.
  uint64_t HandleOf() const {
    for (uint32_t i = 0; i < kMaxViews; ++i)
      if (const SharedView& view = memory_->views()[i]; view.used != 0)
        return FileHandleOf(view, i);
    return 0;
  }

  const std::unique_ptr<RequestMemory> memory_ = testing::MakeMemory();
  const RequestSlot slot_ = memory_->slot(0);
  ViewTable table_{*memory_};
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
  EXPECT_EQ(table_.OfHandle(NodeOf(*a_), HandleOf()), nullptr);  // nobody has it open
  EXPECT_EQ(table_.List(0, 10).size(), 1u);
  EXPECT_TRUE(table_.List(NodeOf(*a_), 10).empty());
  EXPECT_TRUE(Publish(*a_).ok());
}

TEST_F(ViewTableTest, AWithdrawnViewLivesUntilItsLastHandleIsReleased) {
  ASSERT_TRUE(Publish(*a_).ok());
  const uint64_t node = NodeOf(*a_);
  const auto handle = table_.OpenHandle(node, slot_);
  ASSERT_TRUE(handle.has_value());
  ASSERT_EQ(table_.OpenHandle(node, slot_), handle);
  table_.Withdraw(a_->view->name());
  EXPECT_EQ(table_.Listed(a_->view->name()), nullptr);
  EXPECT_TRUE(table_.List(0, 10).empty());
  EXPECT_FALSE(table_.OpenHandle(node, slot_).has_value());
  EXPECT_EQ(table_.OfHandle(node, *handle), a_->view);
  table_.ReleaseHandle(node, *handle, slot_);
  EXPECT_EQ(table_.Known(a_->view->name()), a_->view);
  table_.ReleaseHandle(node, *handle, slot_);
  EXPECT_EQ(table_.Known(a_->view->name()), nullptr);
  EXPECT_EQ(a_->view.use_count(), 1);          // freed
  table_.ReleaseHandle(node, *handle, slot_);  // once too often
}

TEST_F(ViewTableTest, AHandleOfALostViewIsNotOneOfTheNext) {
  ASSERT_TRUE(Publish(*a_).ok());
  const uint64_t node = NodeOf(*a_);
  const auto lost = table_.OpenHandle(node, slot_);
  ASSERT_TRUE(lost.has_value());
  const auto memory = testing::Succeed(*memory_);
  memory->TakeOver();
  {  // a successor that has the view goes on with the handle
    ViewTable table(*memory);
    ASSERT_EQ(table.Restore({a_->view}), 1u);
    EXPECT_EQ(table.OfHandle(node, *lost), a_->view);
  }
  ViewTable table(*memory);
  ASSERT_EQ(table.Restore({}), 0u);
  const ViewTable::Opening opening(table, a_->view->name());
  ASSERT_TRUE(table.Publish(opening, a_->view).ok());
  const auto handle = table.OpenHandle(node, memory->slot(0));
  ASSERT_TRUE(handle.has_value());
  EXPECT_NE(handle, lost);
  table.ReleaseHandle(node, *lost, memory->slot(0));
  EXPECT_EQ(table.OfHandle(node, *lost), nullptr);
  EXPECT_EQ(table.OfHandle(node, *handle), a_->view);
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
  const uint64_t bytes = a_->view->image().stored_size();
  ASSERT_EQ(b->view->image().stored_size(), bytes);
  ASSERT_EQ(c->view->image().stored_size(), bytes);
  ViewTable table(*memory_, 2 * bytes);
  table.Restore({});
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
  const auto handle = table.OpenHandle(NodeOf(*b), slot_);
  ASSERT_TRUE(handle.has_value());
  table.Withdraw(b->view->name());
  EXPECT_EQ(publish(*c).code(), absl::StatusCode::kResourceExhausted);
  table.ReleaseHandle(NodeOf(*b), *handle, slot_);
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
