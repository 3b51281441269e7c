#include "snapshotter/fetch/blob_plan.h"

#include <gmock/gmock.h>

namespace kapsule::fetch {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Optional;

const absl::Time kNow = absl::FromUnixSeconds(1'000'000);
const absl::Time kLater = kNow + absl::Seconds(60);

class BlobPlanTest : public testing::Test {
 protected:
  BlobPlanTest() { plan_.Begin(BlockSet(100), StreamGuess(4, 16)); }
  std::optional<Range> Wanted(uint64_t max = 8) { return plan_.Next(Need::kWanted, max); }
  void Bring(Range range) {
    for (uint64_t block = range.first; block < range.end(); ++block) plan_.Arrived(block);
    plan_.Landed(range);
  }
  void AgeTwice() {
    plan_.Age();
    plan_.Age();
  }
  BlobPlan plan_;
};

TEST_F(BlobPlanTest, WhatIsWantedFirstIsFetchedFirst) {
  plan_.Want({50, 2}, kNow, kLater);
  plan_.Want({10, 20}, kNow, kLater);
  EXPECT_THAT(Wanted(), Optional(Range{50, 2}));
  EXPECT_THAT(Wanted(), Optional(Range{10, 8}));
  EXPECT_THAT(Wanted(), Optional(Range{18, 8}));
  EXPECT_THAT(Wanted(), Optional(Range{26, 4}));
  EXPECT_EQ(Wanted(), std::nullopt);
}

TEST_F(BlobPlanTest, WhatDidNotComeIsFetchedAgain) {
  plan_.Want({10, 4}, kNow, kLater);
  EXPECT_THAT(Wanted(), Optional(Range{10, 4}));
  plan_.Arrived(10);
  plan_.Landed({10, 4});
  EXPECT_THAT(Wanted(), Optional(Range{11, 3}));
  EXPECT_EQ(plan_.waiting(), 3u);
}

TEST_F(BlobPlanTest, WhatIsThereIsNotWaitedFor) {
  plan_.Want({10, 2}, kNow, kLater);
  Bring(*Wanted());
  EXPECT_EQ(plan_.Want({9, 4}, kNow, kLater), 2u);
  EXPECT_EQ(plan_.waiting(), 2u);
  EXPECT_THAT(Wanted(), Optional(Range{9, 1}));
  EXPECT_THAT(Wanted(), Optional(Range{12, 1}));
}

TEST_F(BlobPlanTest, AWantThatIsRepeatedGetsNoMoreTime) {
  plan_.Want({10, 1}, kNow, kNow + absl::Seconds(1));
  plan_.Want({10, 2}, kNow, kLater);
  EXPECT_THAT(plan_.Expire(kNow + absl::Seconds(2)), ElementsAre(Range{10, 1}));
  EXPECT_THAT(plan_.Abandon(), ElementsAre(Range{11, 1}));
  EXPECT_EQ(plan_.waiting(), 0u);
}

TEST_F(BlobPlanTest, AStreamsNextBlocksAreFetchedAhead) {
  plan_.Want({10, 1}, kNow, kLater);
  Bring(*Wanted());
  EXPECT_EQ(plan_.Next(Need::kAhead, 8), std::nullopt);
  plan_.Want({11, 1}, kNow, kLater);
  EXPECT_THAT(Wanted(), Optional(Range{11, 1}));
  EXPECT_THAT(plan_.Next(Need::kAhead, 8), Optional(Range{12, 1}));
  EXPECT_THAT(plan_.Next(Need::kAhead, 8), Optional(Range{13, 1}));
}

TEST_F(BlobPlanTest, AStreamEndsWithTheBlob) {
  for (uint64_t block = 97; block < 100; ++block) {
    plan_.Want({block, 1}, kNow, kLater);
    Bring(*Wanted());
  }
  EXPECT_EQ(plan_.Next(Need::kAhead, 8), std::nullopt);
}

TEST_F(BlobPlanTest, FillingBeginsWhereReadersWereAndEndsWithTheBlob) {
  plan_.Want({90, 1}, kNow, kLater);
  Bring(*Wanted());
  EXPECT_THAT(plan_.Next(Need::kFill, 8), Optional(Range{91, 8}));
  EXPECT_THAT(plan_.Next(Need::kFill, 8), Optional(Range{99, 1}));
  EXPECT_THAT(plan_.Next(Need::kFill, 8), Optional(Range{0, 8}));
  Bring({0, 90});
  Bring({91, 9});
  EXPECT_EQ(plan_.Next(Need::kFill, 8), std::nullopt);
}

TEST_F(BlobPlanTest, BeforeTheBlobIsOpenWantsOnlyWait) {
  BlobPlan plan;
  plan.Want({5, 2}, kNow, kLater);
  plan.Want({99, 3}, kNow, kLater);
  EXPECT_EQ(plan.Next(Need::kWanted, 8), std::nullopt);
  BlockSet there(100);
  there.Add(5);
  EXPECT_THAT(plan.Begin(std::move(there), StreamGuess(1, 1)), ElementsAre(Range{100, 2}));
  EXPECT_THAT(plan.Next(Need::kWanted, 8), Optional(Range{6, 1}));
  EXPECT_THAT(plan.Next(Need::kWanted, 8), Optional(Range{99, 1}));
}

TEST_F(BlobPlanTest, WhatWasTouchedLastGoesLast) {
  Bring({0, 10});
  EXPECT_THAT(plan_.StartGoing(3, 1), IsEmpty());
  plan_.Age();
  plan_.Want({0, 5}, kNow, kLater);
  EXPECT_THAT(plan_.StartGoing(3, 1), ElementsAre(Range{5, 3}));
  plan_.Age();
  plan_.Age();
  EXPECT_THAT(plan_.StartGoing(3, 1), ElementsAre(Range{0, 1}, Range{8, 2}));
}

TEST_F(BlobPlanTest, WhatIsGoingIsNeitherThereNorFetched) {
  Bring({0, 2});
  plan_.Age();
  plan_.Age();
  ASSERT_THAT(plan_.StartGoing(2, 1), ElementsAre(Range{0, 2}));
  EXPECT_EQ(plan_.Want({0, 2}, kNow, kLater), 0u);
  EXPECT_EQ(Wanted(), std::nullopt);
  EXPECT_EQ(plan_.OldestWant(), std::nullopt);
}

TEST_F(BlobPlanTest, WhatIsWantedAgainStaysWhenItIsLetGo) {
  Bring({0, 4});
  plan_.Age();
  plan_.Age();
  ASSERT_THAT(plan_.StartGoing(4, 1), ElementsAre(Range{0, 4}));
  plan_.Want({1, 1}, kNow, kLater);
  const BlobPlan::LetGo let_go = plan_.Release({0, 100}, 1);
  EXPECT_THAT(let_go.kept, ElementsAre(Range{1, 1}));
  EXPECT_THAT(let_go.punch, ElementsAre(Range{0, 1}, Range{2, 2}));
  EXPECT_EQ(plan_.waiting(), 0u);
  plan_.Want({0, 4}, kNow, kLater);
  EXPECT_EQ(Wanted(), std::nullopt);  // being punched
  plan_.Gone(let_go.punch);
  EXPECT_THAT(Wanted(), Optional(Range{0, 1}));
  EXPECT_THAT(Wanted(), Optional(Range{2, 2}));
}

TEST_F(BlobPlanTest, AnAnswerThatNobodyAskedForChangesNothing) {
  Bring({0, 4});
  const BlobPlan::LetGo let_go = plan_.Release({0, 100}, 1);
  EXPECT_THAT(let_go.kept, IsEmpty());
  EXPECT_THAT(let_go.punch, IsEmpty());
  EXPECT_TRUE(plan_.HasAll({0, 4}));
}

TEST_F(BlobPlanTest, AnAnswerToAnyQuestionSinceABlockBeganToGoLetsItGo) {
  Bring({0, 2});
  AgeTwice();
  ASSERT_THAT(plan_.StartGoing(1, 5), ElementsAre(Range{0, 1}));
  ASSERT_THAT(plan_.StartGoing(1, 7), ElementsAre(Range{1, 1}));
  EXPECT_THAT(plan_.Release({0, 2}, 4).punch, IsEmpty());
  EXPECT_THAT(plan_.Release({0, 2}, 6).punch, ElementsAre(Range{0, 1}));
  EXPECT_THAT(plan_.going(), ElementsAre(Range{1, 1}));
  EXPECT_THAT(plan_.Release({0, 2}, 9).punch, ElementsAre(Range{1, 1}));
}

TEST_F(BlobPlanTest, AnAnswerFromBeforeABlockWasThereAgainLetsItNotGo) {
  Bring({0, 1});
  AgeTwice();
  ASSERT_THAT(plan_.StartGoing(1, 1), ElementsAre(Range{0, 1}));
  plan_.Stay();
  ASSERT_THAT(plan_.StartGoing(1, 2), ElementsAre(Range{0, 1}));
  EXPECT_THAT(plan_.Release({0, 1}, 1).punch, IsEmpty());
  EXPECT_THAT(plan_.Release({0, 1}, 2).punch, ElementsAre(Range{0, 1}));
}

}  // namespace
}  // namespace kapsule::fetch
