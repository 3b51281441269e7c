#include "snapshotter/pull_memory.h"

#include <absl/cleanup/cleanup.h>

#include <algorithm>

namespace kapsule::snapshotter {
namespace {

constexpr size_t kMaxFieldBytes = 16 << 10;

// "https://host/v1/" and "host" are the same server.
std::string_view HostOf(std::string_view server) {
  for (const std::string_view scheme : {"https://", "http://"}) {
    if (server.starts_with(scheme)) server.remove_prefix(scheme.size());
  }
  return server.substr(0, server.find('/'));
}

bool IsFor(std::string_view server, std::string_view host) {
  if (server.empty()) return true;
  server = HostOf(server);
  return server == host || (host == "docker.io" && server.ends_with(".docker.io"));
}

absl::Status SplitPair(std::string_view packed, PullCredentials& credentials) {
  absl::StatusOr<Secret> pair = DecodeBase64ToSecret(packed, /*url=*/false);
  const size_t colon = pair.ok() ? pair->text().find(':') : std::string_view::npos;
  if (colon == std::string_view::npos)
    return InvalidArgument("the credentials of the pull are not base64 of name:password");
  credentials.username = pair->text().substr(0, colon);
  credentials.password = Secret::CopyOf(pair->text().substr(colon + 1));
  return absl::OkStatus();
}

}  // namespace

PullCredentials PullCredentials::Clone() const {
  return {place, username, password.Clone(), identity_token.Clone(), registry_token.Clone()};
}

absl::StatusOr<std::optional<PullCredentials>> TakeCredentials(runtime::v1::AuthConfig& auth,
                                                               const oci::Reference& image) {
  std::string* const secrets[] = {auth.mutable_password(), auth.mutable_auth(),
                                  auth.mutable_identity_token(), auth.mutable_registry_token()};
  const absl::Cleanup cleanse = [&secrets] {
    for (std::string* text : secrets) Cleanse(text->data(), text->size());
  };
  for (const std::string* text : secrets) {
    if (text->size() > kMaxFieldBytes)
      return InvalidArgument("the credentials of the pull are longer than {} bytes",
                             kMaxFieldBytes);
  }
  if (auth.username().size() > kMaxFieldBytes)
    return InvalidArgument("the user name of the pull is longer than {} bytes", kMaxFieldBytes);
  if (!IsFor(auth.server_address(), image.host)) return std::nullopt;
  PullCredentials credentials{.place = image.host + "/" + image.repository};
  if (!auth.username().empty()) {
    credentials.username = auth.username();
    credentials.password = Secret::CopyOf(auth.password());
  } else if (!auth.identity_token().empty()) {
    credentials.identity_token = Secret::CopyOf(auth.identity_token());
  } else if (!auth.auth().empty()) {
    RETURN_IF_ERROR(SplitPair(auth.auth(), credentials));
  } else if (!auth.registry_token().empty()) {
    credentials.registry_token = Secret::CopyOf(auth.registry_token());
  } else {
    return std::nullopt;
  }
  return credentials;
}

uint64_t PullMemory::Begin(const oci::Reference& image,
                           std::optional<PullCredentials> credentials) {
  absl::MutexLock lock(&mu_);
  pulls_.push_front({++last_, image.host, image.repository, std::move(credentials)});
  if (pulls_.size() > kMaxPulls) pulls_.pop_back();
  return last_;
}

void PullMemory::End(uint64_t pull, bool succeeded) {
  absl::MutexLock lock(&mu_);
  const auto ended = std::find_if(pulls_.begin(), pulls_.end(),
                                  [pull](const Pull& other) { return other.number == pull; });
  if (ended == pulls_.end()) return;  // one of the oldest, or a newer pull has ended it
  if (succeeded) {
    for (auto it = std::next(ended); it != pulls_.end();)
      it = it->IsOf(*ended) ? pulls_.erase(it) : std::next(it);
  }
  ended->succeeded = succeeded;
  if (!succeeded || !ended->credentials) pulls_.erase(ended);
}

std::optional<PullCredentials> PullMemory::Find(const oci::Reference& image) {
  absl::MutexLock lock(&mu_);
  const Pull* found = nullptr;
  for (const Pull& pull : pulls_) {
    if (!pull.credentials || pull.host != image.host || pull.repository != image.repository)
      continue;
    if (found == nullptr || (pull.succeeded && !found->succeeded)) found = &pull;
  }
  if (found == nullptr) return std::nullopt;
  return found->credentials->Clone();
}

}  // namespace kapsule::snapshotter
