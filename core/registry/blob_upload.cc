#include "core/registry/blob_upload.h"

#include "core/http/url.h"
#include "core/registry/answers.h"

namespace kapsule::registry {
namespace {

using std::chrono::minutes;
using std::chrono::seconds;

// A registry may copy the whole blob to its place before it answers.
constexpr minutes kCommitTimeout{30};
constexpr seconds kCancelTimeout{10};

}  // namespace

RegistryUpload::RegistryUpload(const Transport& transport, std::string name, std::string scope,
                               std::string session)
    : transport_(transport),
      name_(std::move(name)),
      scope_(std::move(scope)),
      session_(std::move(session)) {}

RegistryUpload::~RegistryUpload() {
  if (session_.empty()) return;
  if (patch_ != nullptr) (void)EndPatch();
  http::Request request;
  request.method = "DELETE";
  request.url = session_;
  request.timeout = kCancelTimeout;
  // Registries remove abandoned sessions themselves in time.
  (void)transport_.Send(request, scope_, Repeat::kNo);
}

absl::Status RegistryUpload::Write(ByteSpan bytes) {
  return Annotate(WriteChecked(bytes), "push " + name_);
}

absl::Status RegistryUpload::Commit(const oci::Digest& digest, uint64_t size) {
  return Annotate(CommitChecked(digest, size),
                  fmt::format("push {}: blob {}", name_, digest.text()));
}

absl::Status RegistryUpload::StartPatch() {
  http::Request request;
  request.method = "PATCH";
  request.url = session_;
  request.headers.Add("Content-Type", "application/octet-stream");
  ASSIGN_OR_RETURN(patch_, transport_.StartUpload(request, scope_));
  return absl::OkStatus();
}

absl::Status RegistryUpload::Failed(absl::Status status) {
  patch_.reset();
  return failed_ = std::move(status);
}

absl::Status RegistryUpload::WriteChecked(ByteSpan bytes) {
  RETURN_IF_ERROR(failed_);
  if (bytes.empty()) return absl::OkStatus();
  if (patch_ == nullptr) RETURN_IF_ERROR(StartPatch());
  written_ += bytes.size();
  const absl::Status written = patch_->Write(bytes);
  if (written.ok()) return written;
  // The registry's answer says more than that it came too early.
  const absl::Status answer = absl::IsFailedPrecondition(written) ? EndPatch() : written;
  return Failed(answer.ok() ? written : answer);
}

absl::Status RegistryUpload::EndPatch() {
  const absl::StatusOr<http::Response> response = patch_->Finish();
  patch_.reset();
  if (!response.ok()) return response.status();
  if (response->status != 202 && response->status != 201 && response->status != 204)
    return AnswerStatus("registry", *response);
  ASSIGN_OR_RETURN(session_, transport_.Location(*response));
  return absl::OkStatus();
}

absl::Status RegistryUpload::CommitChecked(const oci::Digest& digest, uint64_t size) {
  RETURN_IF_ERROR(failed_);
  if (written_ != size) return DataLoss("{} bytes written, not {}", written_, size);
  if (patch_ != nullptr) {
    if (absl::Status ended = EndPatch(); !ended.ok()) return Failed(std::move(ended));
  }
  http::Request request;
  request.method = "PUT";
  request.timeout = kCommitTimeout;
  ASSIGN_OR_RETURN(request.url, http::AddQuery(session_, "digest", digest.text()));
  ASSIGN_OR_RETURN(const http::Response response, transport_.Send(request, scope_, Repeat::kNo));
  if (response.status != 201 && response.status != 204) {
    const absl::Status status = AnswerStatus("registry", response);
    const bool digest_refused = response.body.find("DIGEST_INVALID") != std::string::npos;
    return digest_refused ? DataLoss("{}", Message(status)) : status;
  }
  session_.clear();
  return absl::OkStatus();
}

}  // namespace kapsule::registry
