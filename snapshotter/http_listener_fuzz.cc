#include "snapshotter/http_listener.h"

// Whatever comes is refused, or names a path of one line.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto path =
      kapsule::snapshotter::RequestedPath({reinterpret_cast<const char*>(data), size});
  if (path.ok() && (path->empty() || path->front() != '/' || path->find(' ') != std::string::npos))
    __builtin_trap();
  return 0;
}
