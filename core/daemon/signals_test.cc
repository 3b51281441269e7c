#include "core/daemon/signals.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <thread>

namespace kapsule::daemon {
namespace {

TEST(SignalWaiterTest, BlockedSignalsArriveInOneThread) {
  SignalWaiter waiter = SignalWaiter::Block({SIGUSR1, SIGUSR2}).value();
  EXPECT_EQ(waiter.WaitFor(0).value(), std::nullopt);
  kill(getpid(), SIGUSR1);
  EXPECT_EQ(waiter.Wait().value(), SIGUSR1);
  std::thread sender([] { kill(getpid(), SIGUSR2); });
  EXPECT_EQ(waiter.Wait().value(), SIGUSR2);
  sender.join();
  EXPECT_EQ(waiter.WaitFor(10).value(), std::nullopt);
}

}  // namespace
}  // namespace kapsule::daemon
