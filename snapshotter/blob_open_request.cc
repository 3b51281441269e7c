#include "snapshotter/blob_open_request.h"

#include <absl/time/clock.h>

#include <algorithm>

#include "core/base/log.h"

namespace kapsule::snapshotter {
namespace {

// The id is set, and the request wrapped, afterwards.
constexpr size_t kMaxOpenBytes = control::kMaxFetchMessageBytes - 64;

v1::FetchCredentials MessageOf(const PullCredentials& known) {
  v1::FetchCredentials told;
  told.set_place(known.place);
  told.set_username(known.username);
  told.set_password(std::string(known.password.text()));
  told.set_identity_token(std::string(known.identity_token.text()));
  told.set_registry_token(std::string(known.registry_token.text()));
  return told;
}

bool IsTold(const v1::FetchOpen& open, const v1::FetchCredentials& wanted) {
  return std::any_of(open.credentials().begin(), open.credentials().end(), [&](const auto& told) {
    return told.place() == wanted.place() && told.username() == wanted.username() &&
           told.password() == wanted.password() &&
           told.identity_token() == wanted.identity_token() &&
           told.registry_token() == wanted.registry_token();
  });
}

// False, and nothing is added, where there is no room.
bool AddImage(const std::string& image, const std::optional<PullCredentials>& known,
              v1::FetchOpen* open) {
  open->add_sources(image);
  bool added = false;
  if (known) {
    v1::FetchCredentials told = MessageOf(*known);
    added = !IsTold(*open, told);
    if (added) *open->add_credentials() = std::move(told);
  }
  if (open->ByteSizeLong() <= kMaxOpenBytes) return true;
  open->mutable_sources()->RemoveLast();
  if (added) open->mutable_credentials()->RemoveLast();
  return false;
}

}  // namespace

v1::FetchRequest BlobOpenRequest(const RemoteBlob& blob, const CredentialsOf& credentials,
                                 absl::Time deadline) {
  v1::FetchRequest request;
  v1::FetchOpen& open = *request.mutable_open();
  open.set_digest(blob.digest.hex());
  open.set_size(blob.size);
  open.mutable_index()->set_version(blob.index.version);
  open.mutable_index()->set_header_offset(blob.index.offset);
  open.mutable_index()->set_header_length(blob.index.length);
  open.mutable_index()->set_root(blob.index.root.hex());
  const absl::Duration left = std::max(deadline - absl::Now(), absl::Milliseconds(1));
  open.set_timeout_ms(
      static_cast<uint32_t>(std::min<int64_t>(absl::ToInt64Milliseconds(left) + 1, UINT32_MAX)));
  size_t left_out = 0;
  for (const std::string& image : blob.images) {
    const bool full = open.sources_size() == control::kMaxFetchSources;
    if (full || !AddImage(image, credentials(image), &open)) ++left_out;
  }
  if (left_out != 0)
    log::warn(
        "blob {}: of {} images that have it kapsule-fetch is not told of {}: they and their "
        "credentials are more than a message has room for",
        blob.digest.text(), blob.images.size(), left_out);
  return request;
}

}  // namespace kapsule::snapshotter
