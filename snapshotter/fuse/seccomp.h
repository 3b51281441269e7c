// The system calls that kapsule-fuse makes, and no others.
#pragma once

#include "core/base/status.h"

namespace kapsule::fuse {

// Lets libraries read now what they read from files once and when they first
// need it: the time zone, number and speed of the CPUs, how glibc's memory may
// shrink. Call while there are files, before the other steps of confinement and
// before any thread.
absl::Status ReadFilesOfLibraries();

// Allows this process, for good, what serving layers takes: using descriptors
// that it has, unix sockets, memory that is not executable, threads. Not: a path
// (but the address of a unix socket), another process, a program, any other kind
// of socket, any privilege. A call outside the list fails with EPERM, and a line in
// the log names it (forbidden_call.h).
//
// Needs no_new_privs or root. In a build with a sanitizer, whose runtime reads
// /proc, it only says in the log that there is no filter.
//   FailedPrecondition  the kernel has no seccomp filters
absl::Status AllowOnlyNeededCalls();

}  // namespace kapsule::fuse
