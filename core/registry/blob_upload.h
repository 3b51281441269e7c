// One blob on its way into a registry: POST opened the session, PATCH streams,
// PUT with the digest ends it (distribution-spec, "Pushing a blob in chunks").
// The stream is of HTTP's chunked coding also where the size is known, as
// Docker's is: it can be ended early, and only a session whose stream has ended
// can be deleted (registry 2.8 wants the offset that the answer tells).
#pragma once

#include <memory>
#include <string>

#include "core/oci/image_store.h"
#include "core/registry/transport.h"

namespace kapsule::registry {

class RegistryUpload final : public oci::BlobUpload {
 public:
  // `session` is the url that POST gave. `transport` is owned by the caller and
  // must live longer. `name` is for messages.
  RegistryUpload(const Transport& transport, std::string name, std::string scope,
                 std::string session);
  // Without Commit() the stream is ended and the session deleted at the
  // registry, which may take as long as the registry takes to answer twice.
  ~RegistryUpload() override;

  absl::Status Write(ByteSpan bytes) override;
  // DataLoss: fewer or more bytes were written, or the registry computes
  // another digest.
  absl::Status Commit(const oci::Digest& digest, uint64_t size) override;

 private:
  absl::Status WriteChecked(ByteSpan bytes);
  absl::Status CommitChecked(const oci::Digest& digest, uint64_t size);
  absl::Status StartPatch();
  absl::Status EndPatch();
  absl::Status Failed(absl::Status status);

  const Transport& transport_;
  const std::string name_, scope_;
  std::string session_;                  // empty once committed
  std::unique_ptr<http::Upload> patch_;  // from the first byte on
  uint64_t written_ = 0;
  absl::Status failed_;  // what ended the stream too early
};

}  // namespace kapsule::registry
