// What the system lets kapsule-holder do.
#pragma once

#include "core/base/status.h"

namespace kapsule::holder {

// From here on the process may pass descriptors, write its log and end; other
// calls fail with EPERM, which it survives. Call while there is one thread. Does
// nothing in a build with a sanitizer.
absl::Status AllowFewSystemCalls();

}  // namespace kapsule::holder
