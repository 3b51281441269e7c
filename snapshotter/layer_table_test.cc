#include "snapshotter/layer_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <absl/synchronization/notification.h>

#include <atomic>
#include <thread>

namespace kapsule::snapshotter {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ModelLayer Layer(int64_t id, const std::string& blob) {
  ModelLayer layer;
  layer.id = id;
  layer.depth = 1;
  layer.label.digest = oci::Digest::Of(AsBytes(blob));
  return layer;
}

absl::Time In(double seconds) { return absl::Now() + absl::Seconds(seconds); }

// Takes the next work in a thread, so that "none" can be told.
std::optional<LayerTable::Work> TakeFor(LayerTable& table, double seconds) {
  std::optional<LayerTable::Work> work;
  absl::Notification done;
  std::thread taker([&] {
    work = table.Take();
    done.Notify();
  });
  if (!done.WaitForNotificationWithTimeout(absl::Seconds(seconds))) table.Stop();
  taker.join();
  return work;
}

LayerTable::Work MustTake(LayerTable& table) { return TakeFor(table, 30).value(); }

void MountNext(LayerTable& table) {
  const LayerTable::Work work = MustTake(table);
  ASSERT_TRUE(table.BeginMount(work));
  ASSERT_TRUE(table.Commit(work, {"image", true, {}}));
}

TEST(LayerTableTest, AwaitEndsWhenTheLastLayerIsMounted) {
  LayerTable table;
  const std::vector<ModelLayer> chain = {Layer(1, "a"), Layer(2, "b")};
  absl::StatusOr<LayerTable::Ready> ready = absl::UnknownError("");
  std::thread waiter([&] { ready = table.Await(chain, In(10)); });
  MountNext(table);
  MountNext(table);
  waiter.join();
  ASSERT_TRUE(ready.ok()) << ready.status();
  ASSERT_EQ(ready->opened.size(), 2u);
  EXPECT_EQ(ready->opened[1]->image, "image");
}

TEST(LayerTableTest, AwaitSaysWhichLayerIsMissingAtItsDeadline) {
  LayerTable table;
  const absl::Status status = table.Await({Layer(1, "a")}, In(0.05)).status();
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_EQ(Message(status), LayerTitle(Layer(1, "a")) + " is not open yet");
}

TEST(LayerTableTest, AwaitGivesAFinalErrorAtOnce) {
  LayerTable table;
  table.Add(Layer(1, "a"));
  table.Fail(MustTake(table), absl::NotFoundError("no key"));
  const absl::Time start = absl::Now();
  const absl::Status status = table.Await({Layer(1, "a")}, In(10)).status();
  EXPECT_EQ(status, absl::NotFoundError("no key"));
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
}

TEST(LayerTableTest, ALayerWhoseRecordWentWhileItWasAddedIsForgotten) {
  // Remove() came before Add(), comes during it, or is still to come.
  for (const bool during : {false, true}) {
    LayerTable* self = nullptr;
    LayerTable table([&](int64_t id) {
      if (during) self->Remove(id);
      return false;
    });
    self = &table;
    table.Add(Layer(1, "a"));
    EXPECT_TRUE(table.Digests().empty());
    EXPECT_THAT(Message(table.Await({Layer(1, "a")}, In(10)).status()),
                HasSubstr("has been removed"));
    table.Remove(1);
    EXPECT_EQ(MustTake(table).layer, std::nullopt);  // a view of it would be closed
  }
}

TEST(LayerTableTest, ALayerIsNotOpenedBeforeItsRecordHasBeenSeen) {
  std::atomic<bool> asked = false, seen = false;
  LayerTable table([&](int64_t) {
    asked = true;
    absl::SleepFor(absl::Milliseconds(100));
    seen = true;
    return true;
  });
  std::thread opener([&] {
    const LayerTable::Work work = MustTake(table);
    EXPECT_TRUE(seen);
    EXPECT_TRUE(table.BeginMount(work) && table.Commit(work, {"image", true, {}}));
  });
  std::thread adder([&] { table.Add(Layer(1, "a")); });
  while (!asked) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_TRUE(table.Await({Layer(1, "a")}, In(10)).ok());  // known, and to be waited for
  opener.join();
  adder.join();
}

TEST(LayerTableTest, CountsLayersByState) {
  using Counts = std::map<std::string, size_t>;
  LayerTable table;
  EXPECT_EQ(table.States(),
            (Counts{{"failed", 0}, {"mounted", 0}, {"opening", 0}, {"waiting", 0}}));
  for (const auto& [id, blob] : {std::pair(1, "a"), {2, "b"}, {3, "c"}, {4, "d"}})
    table.Add(Layer(id, blob));
  MountNext(table);
  table.Fail(MustTake(table), absl::NotFoundError("no key"));
  MustTake(table);
  EXPECT_EQ(table.States(),
            (Counts{{"failed", 1}, {"mounted", 1}, {"opening", 1}, {"waiting", 1}}));
}

TEST(LayerTableTest, AFinalErrorIsTriedAgainOnlyWhenAwaitedAndNotEverySecond) {
  LayerTable table;
  table.Add(Layer(1, "a"));
  table.Fail(MustTake(table), absl::NotFoundError("no key"));
  absl::SleepFor(LayerTable::kAwaitedPause + absl::Milliseconds(50));
  std::thread worker([&] { MountNext(table); });
  EXPECT_TRUE(table.Await({Layer(1, "a")}, In(10)).ok());
  worker.join();
}

TEST(LayerTableTest, AFinalErrorIsNotTriedByItself) {
  LayerTable table;
  table.Add(Layer(1, "a"));
  table.Fail(MustTake(table), absl::NotFoundError("no key"));
  EXPECT_EQ(TakeFor(table, 0.5), std::nullopt);
}

TEST(LayerTableTest, ATransientErrorIsTriedAgainAndReportedAtTheDeadline) {
  LayerTable table;
  table.Add(Layer(1, "a"));
  table.Fail(MustTake(table), absl::UnavailableError("keyprovider is down"));
  const absl::Status status = table.Await({Layer(1, "a")}, In(0.05)).status();
  EXPECT_EQ(status, absl::UnavailableError("keyprovider is down"));
  MountNext(table);
  EXPECT_TRUE(table.Await({Layer(1, "a")}, In(0)).ok());
}

TEST(LayerTableTest, OneBlobIsWorkedOnOnceAtATime) {
  LayerTable table;
  table.Add(Layer(1, "same"));
  table.Add(Layer(2, "same"));
  const LayerTable::Work first = MustTake(table);
  EXPECT_EQ(TakeFor(table, 0.3), std::nullopt);  // also stops the table
  EXPECT_TRUE(table.BeginMount(first));
}

TEST(LayerTableTest, TheBlobIsClosedWithItsLastSnapshot) {
  LayerTable table;
  table.Add(Layer(1, "same"));
  table.Add(Layer(2, "same"));
  MountNext(table);
  MountNext(table);
  table.Remove(1);
  table.Remove(2);
  const LayerTable::Work work = MustTake(table);
  EXPECT_EQ(work.layer, std::nullopt);
  EXPECT_EQ(work.digest, Layer(1, "same").label.digest);
  // A new snapshot of the blob waits for that.
  table.Add(Layer(3, "same"));
  table.Closed(work, absl::OkStatus());
  MountNext(table);
  EXPECT_THAT(table.Stop(), ElementsAre(3));
}

TEST(LayerTableTest, ABlobThatCouldNotBeClosedIsClosedLater) {
  LayerTable table;
  table.Add(Layer(1, "a"));
  MountNext(table);
  table.Remove(1);
  const absl::Time start = absl::Now();
  table.Closed(MustTake(table), absl::UnavailableError("kapsule-fuse has ended"));
  EXPECT_EQ(MustTake(table).digest, Layer(1, "a").label.digest);
  EXPECT_GE(absl::Now() - start, LayerTable::kClosePause);
}

TEST(LayerTableTest, HurryEndsThePauseBeforeABlobIsClosedAgain) {
  LayerTable table;
  table.CloseUnneeded(Layer(1, "a").label.digest);
  LayerTable::Work work = MustTake(table);
  absl::Duration took = absl::InfiniteDuration();
  for (int i = 0; i < 5 && took >= LayerTable::kClosePause; ++i) {  // the machine may be slow
    const absl::Time start = absl::Now();
    table.Closed(work, absl::UnavailableError("kapsule-fuse has ended"));
    table.Hurry();
    work = MustTake(table);
    took = absl::Now() - start;
  }
  EXPECT_LT(took, LayerTable::kClosePause);
  table.Closed(work, absl::InternalError("which will not pass"));
  EXPECT_EQ(TakeFor(table, 1.5), std::nullopt);
}

TEST(LayerTableTest, OnlyAViewThatNoLayerNeedsIsClosed) {
  LayerTable table;
  table.Add(Layer(1, "needed"));
  for (const char* blob : {"needed", "stray"}) table.CloseUnneeded(Layer(0, blob).label.digest);
  const LayerTable::Work first = MustTake(table), second = MustTake(table);
  EXPECT_EQ(first.layer, std::nullopt);
  EXPECT_EQ(first.digest, Layer(0, "stray").label.digest);
  EXPECT_EQ(second.layer->id, 1);
}

TEST(LayerTableTest, ABlobThatCameBackBeforeItWasClosedStaysOpen) {
  LayerTable table;
  table.Add(Layer(1, "same"));
  MountNext(table);
  table.Remove(1);
  table.Add(Layer(2, "same"));
  EXPECT_EQ(MustTake(table).layer->id, 2);
}

TEST(LayerTableTest, ARemovedLayerIsNotMounted) {
  LayerTable table;
  table.Add(Layer(1, "a"));
  const LayerTable::Work work = MustTake(table);
  table.Remove(1);
  EXPECT_FALSE(table.BeginMount(work));
  table.Fail(work, absl::UnavailableError(""));
  EXPECT_EQ(MustTake(table).layer, std::nullopt);  // close it
}

TEST(LayerTableTest, RemoveWaitsForAMount) {
  LayerTable table;
  table.Add(Layer(1, "a"));
  const LayerTable::Work work = MustTake(table);
  ASSERT_TRUE(table.BeginMount(work));
  absl::Notification removed;
  std::thread remover([&] {
    table.Remove(1);
    removed.Notify();
  });
  EXPECT_FALSE(removed.WaitForNotificationWithTimeout(absl::Milliseconds(200)));
  EXPECT_TRUE(table.Commit(work, {"image", true, {}}));
  remover.join();
  EXPECT_THAT(table.Stop(), IsEmpty());
}

TEST(LayerTableTest, ADeathUndoesMountsAndOutdatesWork) {
  LayerTable table;
  table.Add(Layer(1, "a"));
  MountNext(table);
  table.Add(Layer(2, "b"));
  const LayerTable::Work old = MustTake(table);
  ASSERT_TRUE(table.BeginMount(old));
  EXPECT_THAT(table.Reset(), ElementsAre(1));
  EXPECT_EQ(table.generation(), 1u);
  EXPECT_FALSE(table.Commit(old, {"image", true, {}}));
  table.Fail(old, absl::NotFoundError("no such view"));  // not a final answer
  EXPECT_THAT(Message(table.Await({Layer(1, "a")}, In(0)).status()),
              HasSubstr("kapsule-fuse has died"));
  table.Hurry();
  for (int i = 0; i < 2; ++i) {
    const LayerTable::Work work = MustTake(table);
    // What opened it before is tried first.
    EXPECT_EQ(work.last != nullptr, work.layer->id == 1);
    ASSERT_TRUE(table.BeginMount(work));
    ASSERT_TRUE(table.Commit(work, {"image", true, {}}));
  }
  EXPECT_THAT(table.Stop(), ElementsAre(1, 2));
}

TEST(LayerTableTest, WhatIsMountedIsCheckedAfterASuccessionOneByOneAndLast) {
  LayerTable table;
  for (const int id : {1, 2}) {
    table.Add(Layer(id, std::to_string(id)));
    MountNext(table);
  }
  table.Succeeded();
  const LayerTable::Work first = MustTake(table);
  EXPECT_TRUE(first.check);
  ASSERT_NE(first.last, nullptr);
  EXPECT_EQ(first.last->image, "image");
  table.Add(Layer(3, "3"));
  const LayerTable::Work open = MustTake(table);
  EXPECT_FALSE(open.check);
  table.Fail(open, absl::NotFoundError("no key"));
  table.Checked(first, absl::OkStatus());
  const LayerTable::Work second = MustTake(table);
  EXPECT_TRUE(second.check);
  EXPECT_NE(second.digest, first.digest);
  table.Checked(second, absl::UnavailableError("keyprovider is down"));
  const LayerTable::Work again = MustTake(table);
  EXPECT_EQ(again.digest, second.digest);
  table.Checked(again, absl::PermissionDeniedError("no key"));  // then there is a view
  EXPECT_EQ(TakeFor(table, 0.3), std::nullopt);
}

TEST(LayerTableTest, ACheckThatASuccessionOvertookIsRepeated) {
  LayerTable table;
  table.Add(Layer(1, "a"));
  MountNext(table);
  table.Succeeded();
  const LayerTable::Work check = MustTake(table);
  table.Succeeded();
  table.Checked(check, absl::OkStatus());
  EXPECT_TRUE(MustTake(table).check);
}

TEST(LayerTableTest, ALostLayerIsOpenedAgain) {
  LayerTable table;
  table.Add(Layer(1, "a"));
  MountNext(table);
  table.Succeeded();
  const LayerTable::Work check = MustTake(table);
  EXPECT_TRUE(table.Lost(check));
  EXPECT_FALSE(table.Await({Layer(1, "a")}, In(0)).ok());
  table.Fail(check, absl::UnavailableError("it was lost"));
  MountNext(table);
  EXPECT_TRUE(table.Await({Layer(1, "a")}, In(0)).ok());
  EXPECT_EQ(TakeFor(table, 0.3), std::nullopt);
}

TEST(LayerTableTest, ALostLayerThatWasRemovedMeanwhileIsNot) {
  LayerTable table;
  table.Add(Layer(1, "a"));
  MountNext(table);
  table.Succeeded();
  const LayerTable::Work check = MustTake(table);
  table.Remove(1);
  EXPECT_FALSE(table.Lost(check));
  table.Fail(check, absl::UnavailableError("it was lost"));
  EXPECT_FALSE(MustTake(table).layer.has_value());  // to be closed
}

TEST(LayerTableTest, AwaitedLayersComeFirst) {
  LayerTable table;
  for (int id = 1; id <= 3; ++id) table.Add(Layer(id, std::to_string(id)));
  std::atomic<bool> begun = false;
  std::thread waiter([&] {
    begun = true;
    EXPECT_FALSE(table.Await({Layer(3, "3")}, In(60)).ok());
  });
  while (!begun) absl::SleepFor(absl::Milliseconds(1));
  absl::SleepFor(absl::Milliseconds(500));
  EXPECT_EQ(MustTake(table).layer->id, 3);
  EXPECT_EQ(MustTake(table).layer->id, 1);
  table.Stop();
  waiter.join();
}

TEST(LayerTableTest, ALayerThatFailsAgainAndAgainDoesNotComeBeforeOneThatWaitsForLonger) {
  LayerTable table;
  table.Add(Layer(1, "hostile"));
  const LayerTable::Work hostile = MustTake(table);
  table.Add(Layer(2, "honest"));
  table.Fail(hostile, absl::UnavailableError("no answer"));
  absl::SleepFor(2 * LayerTable::kFirstPause);  // both are due
  EXPECT_EQ(MustTake(table).layer->id, 2);
  EXPECT_EQ(MustTake(table).layer->id, 1);
}

TEST(LayerTableTest, ALimitThatALayerExceedsIsFinal) {
  LayerTable table;
  table.Add(Layer(1, "a"));
  table.Fail(MustTake(table), absl::ResourceExhaustedError("too many entries"));
  EXPECT_TRUE(absl::IsResourceExhausted(table.Await({Layer(1, "a")}, In(10)).status()));
  EXPECT_EQ(TakeFor(table, 0.5), std::nullopt);
}

TEST(LayerTableTest, EveryOpeningHasANumberOfItsOwn) {
  LayerTable table;
  table.Add(Layer(1, "a"));
  MountNext(table);
  const uint64_t first = table.Await({Layer(1, "a")}, In(1))->opened[0]->number;
  table.Remove(1);
  table.Closed(MustTake(table), absl::OkStatus());
  table.Add(Layer(2, "a"));
  MountNext(table);
  EXPECT_NE(table.Await({Layer(2, "a")}, In(1))->opened[0]->number, first);
}

TEST(LayerTableTest, StopEndsAllWaiting) {
  LayerTable table;
  std::thread waiter(
      [&] { EXPECT_TRUE(absl::IsUnavailable(table.Await({Layer(1, "a")}, In(60)).status())); });
  MustTake(table);
  table.Stop();
  waiter.join();
  EXPECT_EQ(table.Take(), std::nullopt);
}

}  // namespace
}  // namespace kapsule::snapshotter
