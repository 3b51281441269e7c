#include "snapshotter/fuse/task_pool.h"

#include <absl/synchronization/notification.h>
#include <absl/time/clock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

namespace kapsule::fuse {
namespace {

// Pools are never destroyed: their threads live as long as the process.
TaskPool& NewPool(size_t limit) { return *std::make_unique<TaskPool>(limit).release(); }

TEST(TaskPoolTest, TasksRunInTheOrderOfTheirTimes) {
  TaskPool& pool = NewPool(10);
  absl::Mutex mu;
  std::vector<int> ran;
  absl::Notification done;
  const auto task = [&](int number) {
    return [&, number] {
      absl::MutexLock lock(&mu);
      ran.push_back(number);
      if (ran.size() == 4) done.Notify();
    };
  };
  const absl::Time now = absl::Now();
  pool.AddAt(now + absl::Milliseconds(60), task(4));
  pool.AddAt(now + absl::Milliseconds(20), task(3));
  pool.AddAt(now, task(2));
  ASSERT_TRUE(pool.Add(task(1)));
  ASSERT_TRUE(pool.Start(1).ok());
  done.WaitForNotification();
  EXPECT_GE(absl::Now() - now, absl::Milliseconds(60));
  absl::MutexLock lock(&mu);
  EXPECT_EQ(ran, (std::vector{1, 2, 3, 4}));
}

TEST(TaskPoolTest, AnEarlierTaskWakesOneThatWaitsForALaterOne) {
  TaskPool& pool = NewPool(1);
  ASSERT_TRUE(pool.Start(1).ok());
  pool.AddAt(absl::Now() + absl::Hours(1), [] {});
  absl::SleepFor(absl::Milliseconds(20));
  absl::Notification done;
  ASSERT_TRUE(pool.Add([&] { done.Notify(); }));
  EXPECT_TRUE(done.WaitForNotificationWithTimeout(absl::Seconds(10)));
}

TEST(TaskPoolTest, TheNumberThatWaitsIsBounded) {
  TaskPool pool(2);  // never started
  EXPECT_TRUE(pool.Add([] {}));
  EXPECT_TRUE(pool.Add([] {}));
  EXPECT_FALSE(pool.Add([] {}));
}

}  // namespace
}  // namespace kapsule::fuse
