#include "core/registry/transport.h"

#include "core/http/url.h"

namespace kapsule::registry {
namespace {

constexpr size_t kMaxAnswerBytes = 4 << 20;

std::string Origin(const std::string& host, bool insecure) {
  if (host == "docker.io") return "https://registry-1.docker.io";
  return (insecure ? "http://" : "https://") + host;
}

CredentialSource SourceOf(const std::string& host, const Options& options) {
  if (!options.username.empty())
    return [credentials = Credentials{options.username, options.password, ""}] {
      return absl::StatusOr<std::optional<Credentials>>(credentials);
    };
  return [host] { return FindDockerCredentials(DockerConfigFiles(), host); };
}

}  // namespace

Transport::Transport(const std::string& host, const Options& options)
    : origin_(Origin(host, options.insecure)),
      retry_(options.retry),
      client_(options.http),
      authenticator_(client_, retry_, SourceOf(host, options), options.insecure) {}

absl::StatusOr<std::string> Transport::Location(const http::Response& response) const {
  const std::optional<std::string> location = response.headers.Find("Location");
  if (!location) return InvalidArgument("the registry's answer has no Location");
  ASSIGN_OR_RETURN(std::string url, http::ResolveUrl(response.url, *location));
  if (http::IsHttps(origin_) && !http::IsHttps(url))
    return InvalidArgument("the registry sends us from https to http");
  return url;
}

absl::StatusOr<http::Response> Transport::Authorized(const http::Request& request,
                                                     const std::string& scope,
                                                     const Run& run) const {
  if (!http::SameOrigin(request.url, origin_)) return run(request);
  http::Request authorized = request;
  ASSIGN_OR_RETURN(const std::string known, authenticator_.Known(scope));
  if (!known.empty()) authorized.headers.Add("Authorization", known);
  absl::StatusOr<http::Response> response = run(authorized);
  // After a redirect it is not the registry that asks.
  if (!response.ok() || response->status != 401 || !http::SameOrigin(response->url, origin_))
    return response;
  ASSIGN_OR_RETURN(const std::string answer, authenticator_.Answer(response->headers, scope));
  if (answer.empty() || answer == known) return response;
  authorized.headers.Remove("Authorization");
  authorized.headers.Add("Authorization", answer);
  return run(authorized);
}

absl::StatusOr<http::Response> Transport::Send(const http::Request& request,
                                               const std::string& scope, Repeat repeat) const {
  const auto once = [&] {
    return Authorized(request, scope, [this](const http::Request& authorized) {
      return client_.Send(authorized, kMaxAnswerBytes);
    });
  };
  return repeat == Repeat::kYes ? WithRetries(retry_, once) : once();
}

absl::StatusOr<http::Response> Transport::Download(const http::Request& request,
                                                   const std::string& scope,
                                                   const http::Sink& sink) const {
  bool begun = false;
  const http::Sink noting = [&](ByteSpan bytes) {
    begun = true;
    return sink(bytes);
  };
  absl::Status broken;
  const absl::StatusOr<http::Response> response = WithRetries(retry_, [&] {
    absl::StatusOr<http::Response> result = Authorized(
        request, scope,
        [&](const http::Request& authorized) { return client_.Download(authorized, noting); });
    // The sink cannot take its bytes back: not again. An empty answer ends the
    // retries.
    if (result.ok() || !begun) return result;
    broken = result.status();
    return absl::StatusOr<http::Response>(http::Response());
  });
  RETURN_IF_ERROR(broken);
  return response;
}

absl::StatusOr<std::unique_ptr<http::Upload>> Transport::StartUpload(
    http::Request request, const std::string& scope) const {
  if (http::SameOrigin(request.url, origin_)) {
    ASSIGN_OR_RETURN(const std::string known, authenticator_.Known(scope));
    if (!known.empty()) request.headers.Add("Authorization", known);
  }
  return client_.StartUpload(request, std::nullopt);
}

}  // namespace kapsule::registry
