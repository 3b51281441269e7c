// One repository of a registry, to push to and to pull from
// (OCI distribution-spec 1.1).
#pragma once

#include <memory>
#include <string>

#include "core/oci/image_store.h"
#include "core/oci/reference.h"
#include "core/registry/transport.h"

namespace kapsule::registry {

// Errors begin with "push NAME: " or "pull NAME: ", then the registry's answer
// as AnswerStatus() (answers.h) tells it, or that of the connection as
// http::Client does. They hold no credential.
// Thread-safe; each upload is used by one thread, and not longer than the
// repository.
class Repository final : public oci::ImageTarget, public oci::ImageSource {
 public:
  // No request is made. "docker.io" is reached at registry-1.docker.io.
  Repository(oci::Reference reference, const Options& options);

  absl::StatusOr<std::unique_ptr<oci::BlobUpload>> StartBlob(std::optional<uint64_t> size) override;
  absl::StatusOr<bool> HasBlob(const oci::Digest& digest, uint64_t size) override;
  // Takes a blob over from another repository of the registry. False where the
  // registry cannot or may not; the blob must be uploaded then.
  absl::StatusOr<bool> MountBlob(const oci::Digest& digest, const std::string& from_repository);
  // Under the reference's tag; where that has none, under its digest, which
  // must be that of `bytes`.
  absl::Status PutManifest(std::string_view bytes, const std::string& media_type) override;

  absl::StatusOr<ManifestBytes> GetManifest(const std::optional<oci::Digest>& digest) override;
  absl::Status ReadBlob(const oci::Descriptor& blob,
                        const std::function<absl::Status(ByteSpan)>& sink) override;

  std::string name() const override { return reference_.text(); }

 private:
  std::string Path(const std::string& rest) const;
  std::string Scope(const char* actions) const;
  absl::Status PutManifestChecked(std::string_view bytes, const std::string& media_type);
  absl::StatusOr<ManifestBytes> FetchManifest(const std::optional<oci::Digest>& digest);
  absl::Status FetchBlob(const oci::Descriptor& blob, const http::Sink& sink);

  const oci::Reference reference_;
  const std::string pull_scope_, push_scope_;
  const Transport transport_;
};

}  // namespace kapsule::registry
