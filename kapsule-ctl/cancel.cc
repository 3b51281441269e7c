#include "kapsule-ctl/cancel.h"

#include <csignal>
#include <initializer_list>

namespace kapsule::ctl {
namespace {

volatile std::sig_atomic_t cancelled = 0;

void OnSignal(int) { cancelled = 1; }

}  // namespace

void CatchSignals() {
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  sigemptyset(&action.sa_mask);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) sigaction(number, &action, nullptr);
}

bool IsCancelled() { return cancelled != 0; }

}  // namespace kapsule::ctl
