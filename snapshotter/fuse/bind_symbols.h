// No symbol is looked up while keys are in use.
#pragma once

#include "core/base/status.h"

namespace kapsule::fuse {

// By default the dynamic linker looks up a function at its first call, and saves
// the vector registers on the stack for that time, with what a cipher left of
// its key in them. Where the program was not started with LD_BIND_NOW, this
// starts it again with it: same process, arguments and descriptors. Call first,
// while there are files and one thread.
//   Internal, NotFound  it could not be started again
absl::Status BindSymbolsNow(char** argv);

}  // namespace kapsule::fuse
