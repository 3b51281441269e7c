// Cancelling by SIGINT, SIGTERM or SIGHUP.
#pragma once

namespace kapsule::ctl {

// From now on the first such signal only sets a flag; a second one ends the
// program at once. Call before any thread is started.
void CatchSignals();
bool IsCancelled();

}  // namespace kapsule::ctl
