// A file system in which there is nothing but one folder.
#pragma once

#include <filesystem>

#include "core/base/status.h"

namespace kapsule::fuse {

// Moves the process to a mount namespace of its own, whose root is an empty
// read-only tmpfs with `folder` at its path: read-only, without what is mounted
// below it, without devices, programs and setuid. Unix sockets in it can be
// connected to, those made later too: the folder itself is shown, so it must
// not be replaced by another while the process lives. Other namespaces see
// nothing of it. Needs CAP_SYS_ADMIN and one thread. After an error the process
// must end.
//   InvalidArgument  `folder` is not an absolute path without "." and "..", or
//                    is the root
//   NotFound         there is no such folder
absl::Status EnterPrivateRoot(const std::filesystem::path& folder);

}  // namespace kapsule::fuse
