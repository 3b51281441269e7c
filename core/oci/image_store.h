// Where images are written to and read from: an OCI layout on disk
// (core/content) or a repository of a registry (core/registry).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "core/oci/manifest.h"

namespace kapsule::oci {

// One blob on its way. Destroying it without Commit() removes what was written.
// Not thread-safe.
class BlobUpload {
 public:
  virtual ~BlobUpload() = default;
  virtual absl::Status Write(ByteSpan bytes) = 0;
  // `digest` is what the caller has computed of the bytes that it wrote: it goes
  // into the manifest that the caller vouches for. A registry computes it again.
  // DataLoss: another number of bytes was written, or the store knows better.
  virtual absl::Status Commit(const Digest& digest, uint64_t size) = 0;
};

class ImageTarget {
 public:
  virtual ~ImageTarget() = default;
  // `size` where it is known before the first byte.
  virtual absl::StatusOr<std::unique_ptr<BlobUpload>> StartBlob(std::optional<uint64_t> size) = 0;
  virtual absl::StatusOr<bool> HasBlob(const Digest& digest, uint64_t size) = 0;
  // Publishes `bytes` under the target's name. All blobs are there before.
  virtual absl::Status PutManifest(std::string_view bytes, const std::string& media_type) = 0;
  // For messages: "127.0.0.1:5000/acme/tiny:enc".
  virtual std::string name() const = 0;
};

class ImageSource {
 public:
  virtual ~ImageSource() = default;
  struct ManifestBytes {
    std::string bytes;  // at most kMaxManifestBytes
    std::string media_type;
  };
  // The manifest or index of the source's name, or of `digest`; bytes named by
  // a digest have been checked against it.
  virtual absl::StatusOr<ManifestBytes> GetManifest(const std::optional<Digest>& digest) = 0;
  // Streams a blob to `sink`, checking size and digest; the error of a sink
  // stops it. DataLoss where the bytes do not match.
  virtual absl::Status ReadBlob(const Descriptor& blob,
                                const std::function<absl::Status(ByteSpan)>& sink) = 0;
  virtual std::string name() const = 0;
};

}  // namespace kapsule::oci
