#include "core/registry/transport.h"

#include "core/http/url.h"
#include "core/registry/credentials.h"

namespace kapsule::registry {
namespace {

constexpr size_t kMaxAnswerBytes = 4 << 20;

std::string Origin(const std::string& host, bool insecure) {
  if (host == "docker.io") return "https://registry-1.docker.io";
  return (insecure ? "http://" : "https://") + host;
}

CredentialSource SourceOf(const std::string& host, const std::string& repository,
                          const Options& options) {
  if (!options.username.empty())
    return [credentials = Credentials{options.username, options.password, ""}] {
      return TheseCredentials({credentials});
    };
  return
      [host, repository] { return EachDockerCredentials(DockerConfigFiles(), host, repository); };
}

Endpoint EndpointOf(const std::string& host, const std::string& repository,
                    const Options& options) {
  return {Origin(host, options.insecure),
          SourceOf(host, repository, options),
          {},
          options.retry,
          std::make_shared<const http::Client>(options.http)};
}

// One Authorization, ours where there are two.
void Authorize(const std::string& header, http::Request* request) {
  if (header.empty()) return;
  request->headers.Remove("Authorization");
  request->headers.Add("Authorization", header);
}

}  // namespace

Transport::Transport(const std::string& host, const std::string& repository, const Options& options)
    : Transport(EndpointOf(host, repository, options)) {}

Transport::Transport(Endpoint endpoint)
    : endpoint_(std::move(endpoint)),
      authenticator_(*endpoint_.client, endpoint_.retry, endpoint_.credentials,
                     !http::IsHttps(endpoint_.root)) {}

absl::StatusOr<std::string> Transport::Location(const http::Response& response) const {
  const std::optional<std::string> location = response.headers.Find("Location");
  if (!location) return InvalidArgument("the registry's answer has no Location");
  ASSIGN_OR_RETURN(std::string url, http::ResolveUrl(response.url, *location));
  if (http::IsHttps(endpoint_.root) && !http::IsHttps(url))
    return InvalidArgument("the registry sends us from https to http");
  return url;
}

absl::StatusOr<http::Response> Transport::Authorized(const http::Request& request,
                                                     const std::string& scope,
                                                     const Run& run) const {
  if (!http::SameOrigin(request.url, endpoint_.root)) return run(request);
  http::Request authorized = request;
  for (const auto& [name, value] : endpoint_.headers) authorized.headers.Add(name, value);
  Authenticator::Tried tried;
  ASSIGN_OR_RETURN(std::string header, authenticator_.Known(scope, request, tried));
  Authorize(header, &authorized);
  absl::StatusOr<http::Response> response = run(authorized);
  std::optional<http::Response> refusal;  // of somebody, which says more than nobody's
  while (IsRefusal(response, header)) {
    if (!header.empty() && !tried.anonymous) refusal = *response;
    ASSIGN_OR_RETURN(header,
                     authenticator_.Answer(response->headers, scope, header, request, tried));
    if (header.empty()) return refusal ? *std::move(refusal) : response;
    Authorize(header, &authorized);
    response = run(authorized);
  }
  return response;
}

// Of who we are, by the registry: after a redirect it is not the registry that asks.
bool Transport::IsRefusal(const absl::StatusOr<http::Response>& response,
                          const std::string& header) const {
  return response.ok() &&
         (response->status == 401 || (response->status == 403 && !header.empty())) &&
         http::SameOrigin(response->url, endpoint_.root);
}

absl::StatusOr<http::Response> Transport::Send(const http::Request& request,
                                               const std::string& scope, Repeat repeat) const {
  const auto once = [&] {
    return Authorized(request, scope, [this](const http::Request& authorized) {
      return endpoint_.client->Send(authorized, kMaxAnswerBytes);
    });
  };
  return repeat == Repeat::kYes ? WithRetries(endpoint_.retry, once) : once();
}

absl::StatusOr<http::Response> Transport::Download(const http::Request& request,
                                                   const std::string& scope, const http::Sink& sink,
                                                   const http::HeadCheck& check) const {
  bool begun = false;
  const http::Sink noting = [&](ByteSpan bytes) {
    begun = true;
    return sink(bytes);
  };
  absl::Status broken;
  const absl::StatusOr<http::Response> response = WithRetries(endpoint_.retry, [&] {
    absl::StatusOr<http::Response> result =
        Authorized(request, scope, [&](const http::Request& authorized) {
          return endpoint_.client->Download(authorized, noting, check);
        });
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
  if (http::SameOrigin(request.url, endpoint_.root)) {
    for (const auto& [name, value] : endpoint_.headers) request.headers.Add(name, value);
    Authenticator::Tried tried;
    ASSIGN_OR_RETURN(const std::string known, authenticator_.Known(scope, request, tried));
    Authorize(known, &request);
  }
  return endpoint_.client->StartUpload(request, std::nullopt);
}

}  // namespace kapsule::registry
