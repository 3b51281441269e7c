#pragma once

#include <functional>

#include "core/base/bytes.h"

namespace kapsule::archive {

// Takes bytes as they are made; its error stops the maker.
using Sink = std::function<absl::Status(ByteSpan)>;

}  // namespace kapsule::archive
