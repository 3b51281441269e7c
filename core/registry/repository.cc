#include "core/registry/repository.h"

#include "core/http/url.h"
#include "core/registry/answers.h"
#include "core/registry/blob_upload.h"

namespace kapsule::registry {
namespace {

constexpr std::chrono::seconds kMetadataTimeout{60};
constexpr std::chrono::minutes kManifestTimeout{5};

http::Request Metadata(const char* method, std::string url) {
  http::Request request;
  request.method = method;
  request.url = std::move(url);
  request.timeout = kMetadataTimeout;
  return request;
}

// What we are told about a digest must agree with what we computed.
absl::Status CheckDigestHeader(const http::Response& response, const oci::Digest& digest) {
  const std::optional<std::string> told = response.headers.Find("Docker-Content-Digest");
  if (!told || !told->starts_with("sha256:") || *told == digest.text()) return absl::OkStatus();
  return DataLoss("the registry names another digest than that of the manifest, {}", digest.text());
}

// The manifest's own word, which its digest covers, before the header's.
std::string MediaTypeOf(const http::Response& response) {
  const absl::StatusOr<Json> json = ParseJson(response.body, oci::kMaxManifestBytes);
  const std::string inner = json.ok() ? StringMember(*json, "mediaType").value_or("") : "";
  if (!inner.empty()) return inner;
  const std::string header = response.headers.Find("Content-Type").value_or("");
  return header.substr(0, header.find_first_of("; "));
}

}  // namespace

Repository::Repository(oci::Reference reference, const Options& options)
    : reference_(std::move(reference)),
      pull_scope_(Scope("pull")),
      push_scope_(Scope("pull,push")),
      transport_(reference_.host, reference_.repository, options) {}

std::string Repository::Path(const std::string& rest) const {
  return transport_.Url("/v2/" + reference_.repository + "/" + rest);
}

std::string Repository::Scope(const char* actions) const {
  return "repository:" + reference_.repository + ":" + actions;
}

absl::StatusOr<std::unique_ptr<oci::BlobUpload>> Repository::StartBlob(std::optional<uint64_t>) {
  const absl::StatusOr<http::Response> response =
      transport_.Send(Metadata("POST", Path("blobs/uploads/")), push_scope_, Repeat::kNo);
  const absl::Status answered = !response.ok()            ? response.status()
                                : response->status == 202 ? absl::OkStatus()
                                                          : AnswerStatus("registry", *response);
  if (!answered.ok()) return Annotate(answered, "push " + name());
  absl::StatusOr<std::string> session = transport_.Location(*response);
  if (!session.ok()) return Annotate(session.status(), "push " + name());
  return std::make_unique<RegistryUpload>(transport_, name(), push_scope_, *std::move(session));
}

absl::StatusOr<bool> Repository::HasBlob(const oci::Digest& digest, uint64_t size) {
  const absl::StatusOr<http::Response> response =
      transport_.Send(Metadata("HEAD", Path("blobs/" + digest.text())), push_scope_, Repeat::kYes);
  if (!response.ok()) return Annotate(response.status(), "push " + name());
  if (response->status == 404) return false;
  if (response->status != 200)
    return Annotate(AnswerStatus("registry", *response), "push " + name());
  const std::optional<std::string> length = response->headers.Find("Content-Length");
  return !length || *length == std::to_string(size);
}

absl::StatusOr<bool> Repository::MountBlob(const oci::Digest& digest,
                                           const std::string& from_repository) {
  ASSIGN_OR_RETURN(std::string url, http::AddQuery(Path("blobs/uploads/"), "mount", digest.text()));
  ASSIGN_OR_RETURN(url, http::AddQuery(url, "from", from_repository));
  const std::string scope = push_scope_ + " repository:" + from_repository + ":pull";
  const absl::StatusOr<http::Response> response =
      transport_.Send(Metadata("POST", url), scope, Repeat::kNo);
  if (!response.ok()) return Annotate(response.status(), "push " + name());
  if (response->status == 201) return true;
  // The registry opened an upload instead; it is deleted again.
  if (response->status == 202) {
    if (absl::StatusOr<std::string> session = transport_.Location(*response); session.ok())
      RegistryUpload(transport_, name(), push_scope_, *std::move(session));
  }
  return false;
}

absl::Status Repository::PutManifest(std::string_view bytes, const std::string& media_type) {
  return Annotate(PutManifestChecked(bytes, media_type), "push " + name());
}

absl::Status Repository::PutManifestChecked(std::string_view bytes, const std::string& media_type) {
  const oci::Digest digest = oci::Digest::Of(AsBytes(bytes));
  if (reference_.digest && *reference_.digest != digest)
    return InvalidArgument("the manifest has the digest {}", digest.text());
  const std::string version = reference_.tag.empty() ? digest.text() : reference_.tag;
  http::Request request = Metadata("PUT", Path("manifests/" + version));
  request.headers.Add("Content-Type", media_type);
  request.body = bytes;
  request.timeout = kManifestTimeout;
  ASSIGN_OR_RETURN(const http::Response response,
                   transport_.Send(request, push_scope_, Repeat::kYes));
  if (response.status != 201 && response.status != 200) return AnswerStatus("registry", response);
  return CheckDigestHeader(response, digest);
}

absl::StatusOr<oci::ImageSource::ManifestBytes> Repository::GetManifest(
    const std::optional<oci::Digest>& digest) {
  absl::StatusOr<ManifestBytes> manifest = FetchManifest(digest ? digest : reference_.digest);
  if (!manifest.ok()) return Annotate(manifest.status(), "pull " + name());
  return manifest;
}

absl::StatusOr<oci::ImageSource::ManifestBytes> Repository::FetchManifest(
    const std::optional<oci::Digest>& digest) {
  const std::string version = digest ? digest->text() : reference_.tag;
  http::Request request = Metadata("GET", Path("manifests/" + version));
  for (const char* type :
       {oci::kManifestType, oci::kIndexType, oci::kDockerManifestType, oci::kDockerIndexType})
    request.headers.Add("Accept", type);
  ASSIGN_OR_RETURN(http::Response response, transport_.Send(request, pull_scope_, Repeat::kYes));
  if (response.status != 200) return AnswerStatus("registry", response);
  const oci::Digest found = oci::Digest::Of(AsBytes(response.body));
  if (digest && *digest != found)
    return DataLoss("manifest {} came with the digest {}", digest->text(), found.text());
  RETURN_IF_ERROR(CheckDigestHeader(response, found));
  std::string media_type = MediaTypeOf(response);
  return ManifestBytes{std::move(response.body), std::move(media_type)};
}

absl::Status Repository::ReadBlob(const oci::Descriptor& blob,
                                  const std::function<absl::Status(ByteSpan)>& sink) {
  return Annotate(FetchBlob(blob, sink),
                  fmt::format("pull {}: blob {}", name(), blob.digest.text()));
}

absl::Status Repository::FetchBlob(const oci::Descriptor& blob, const http::Sink& sink) {
  http::Request request;
  request.url = Path("blobs/" + blob.digest.text());
  oci::Hasher hasher;
  uint64_t received = 0;
  const http::Sink checking = [&](ByteSpan bytes) {
    if (bytes.size() > blob.size - received)
      return DataLoss("more than its {} bytes were sent", blob.size);
    received += bytes.size();
    hasher.Update(bytes);
    return sink(bytes);
  };
  ASSIGN_OR_RETURN(const http::Response response,
                   transport_.Download(request, pull_scope_, checking));
  if (response.status != 200) return AnswerStatus("registry", response);
  if (received != blob.size) return DataLoss("{} of {} bytes were sent", received, blob.size);
  if (hasher.Finish() != blob.digest) return DataLoss("the content has another digest");
  return absl::OkStatus();
}

}  // namespace kapsule::registry
