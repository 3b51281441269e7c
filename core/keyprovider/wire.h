// How kapsule-fuse asks the keyprovider for a layer key: one SOCK_SEQPACKET
// request, one reply, fixed layouts, no serialisation library. The annotations
// travel as a sealed memfd of at most 4 MiB.
#pragma once

#include <filesystem>
#include <optional>

#include "core/crypt/layer_cipher.h"
#include "core/oci/annotations.h"

namespace kapsule::keyprovider {

inline constexpr size_t kMaxAnnotationBytes = 4 << 20;

// What unwrapping gives.
struct UnwrappedLayer {
  crypt::LayerKey key;
  std::optional<oci::IndexRef> index;
};

// Annotations as the JSON object that the memfd holds.
std::string AnnotationsToJson(const oci::Annotations& annotations);
absl::StatusOr<oci::Annotations> AnnotationsFromJson(std::string_view json);

// Client side. `annotations_fd` is the sealed memfd. A new connection each
// call; `timeout_ms` covers all of it. The error of the provider comes back with
// its code and message; Unavailable names the socket where nobody answers.
absl::StatusOr<UnwrappedLayer> Unwrap(const std::filesystem::path& socket, int annotations_fd,
                                      int timeout_ms);

// Server side: one request and one reply on an accepted connection.
struct WireRequest {
  std::string annotations_json;
};
absl::StatusOr<WireRequest> ReceiveRequest(int connection);
absl::Status SendReply(int connection, const absl::StatusOr<UnwrappedLayer>& result);

}  // namespace kapsule::keyprovider
