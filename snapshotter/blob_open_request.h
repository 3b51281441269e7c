// What kapsule-fetch is told to open a blob.
#pragma once

#include <absl/time/time.h>

#include <functional>
#include <optional>
#include <string>

#include "core/control/fetch_control.h"
#include "snapshotter/pull_memory.h"
#include "snapshotter/remote_blob.h"

namespace kapsule::snapshotter {

// Whom an image was pulled as, where that is known.
using CredentialsOf = std::function<std::optional<PullCredentials>(const std::string& image)>;

// Names the images that have the blob, and whom they were pulled as, each once. Images that a
// packet has no room for are left out, and the log says so; where that is all of them,
// CheckFetchRequest() refuses the request.
v1::FetchRequest BlobOpenRequest(const RemoteBlob& blob, const CredentialsOf& credentials,
                                 absl::Time deadline);

}  // namespace kapsule::snapshotter
