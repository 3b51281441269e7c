#include "core/registry/authenticator.h"

#include <algorithm>

#include "core/base/json.h"
#include "core/http/url.h"
#include "core/registry/answers.h"

namespace kapsule::registry {
namespace {

using std::chrono::seconds;
using Clock = std::chrono::steady_clock;

constexpr size_t kMaxTokenBytes = 1 << 20;
constexpr size_t kMaxHeaderBytes = 64 * 1024;
// What the token specification says where the service says nothing, and the
// least that is worth renewing for.
constexpr seconds kTokenLife{60};
constexpr seconds kMaxTokenLife{3600};
constexpr seconds kRenewBefore{10};
// Tried for one request.
constexpr size_t kMaxCredentials = 32;

std::string BasicHeader(const Credentials& credentials) {
  return "Basic " + EncodeBase64(AsBytes(credentials.username + ":" + credentials.password));
}

std::string Param(const Challenge& challenge, const std::string& name) {
  const auto param = challenge.params.find(name);
  return param == challenge.params.end() ? "" : param->second;
}

// The first challenge that we know how to answer.
std::optional<Challenge> Choose(const http::Headers& headers) {
  for (const std::string& value : headers.FindAll("WWW-Authenticate")) {
    for (Challenge& challenge : ParseChallenges(value)) {
      if (challenge.scheme == "basic" || challenge.scheme == "bearer") return std::move(challenge);
    }
  }
  return std::nullopt;
}

bool IsRefusal(const absl::Status& status) {
  return absl::IsUnauthenticated(status) || absl::IsPermissionDenied(status);
}

template <typename T>
bool Holds(const std::vector<T>& all, const T& one) {
  return std::find(all.begin(), all.end(), one) != all.end();
}

// "a=b&c=d", escaped as in a query.
absl::StatusOr<std::string> Form(const std::map<std::string, std::string>& fields) {
  std::string url = "http://form/";
  for (const auto& [name, value] : fields) {
    ASSIGN_OR_RETURN(url, http::AddQuery(url, name, value));
  }
  return url.substr(url.find('?') + 1);
}

}  // namespace

Authenticator::Authenticator(const http::Client& client, RetryPolicy retry, CredentialSource source,
                             bool plain_http)
    : client_(client), retry_(retry), source_(std::move(source)), plain_http_(plain_http) {}

absl::StatusOr<std::string> Authenticator::Known(const std::string& scope,
                                                 const http::Request& request, Tried& tried) {
  Challenge challenge;
  {
    absl::MutexLock lock(&mu_);
    if (!challenge_) return std::string();
    const auto token = tokens_.find(scope);
    if (token != tokens_.end() && Clock::now() < token->second.renew) return token->second.header;
    challenge = *challenge_;
  }
  return Respond(challenge, scope, request, tried);
}

absl::StatusOr<std::string> Authenticator::Answer(const http::Headers& headers,
                                                  const std::string& scope,
                                                  const std::string& refused,
                                                  const http::Request& request, Tried& tried) {
  std::optional<Challenge> challenge = Choose(headers);
  if (!refused.empty()) tried.refused.push_back(refused);
  {
    absl::MutexLock lock(&mu_);
    if (challenge)
      challenge_ = challenge;
    else if (!refused.empty())
      challenge = challenge_;
    if (!challenge) return std::string();
    const auto token = tokens_.find(scope);
    // Another thread that was refused has a new one already.
    if (token != tokens_.end() && !Holds(tried.refused, token->second.header) &&
        Clock::now() < token->second.renew)
      return token->second.header;
    tokens_.erase(scope);
  }
  ++answers_;
  return Respond(*challenge, scope, request, tried);
}

absl::StatusOr<std::string> Authenticator::Respond(const Challenge& challenge,
                                                   const std::string& scope,
                                                   const http::Request& request, Tried& tried) {
  while (!tried.anonymous) {
    const std::optional<Credentials> credentials = NextOf(tried);
    tried.anonymous = !credentials;
    const absl::StatusOr<std::string> header = HeaderFor(challenge, scope, credentials, request);
    if (header.ok() && !header->empty() && !Holds(tried.refused, *header)) return header;
    if (header.ok()) continue;
    if (!IsRefusal(header.status())) return header;
    if (tried.failed.ok() && (credentials || tried.credentials.empty()))
      tried.failed = header.status();
  }
  RETURN_IF_ERROR(tried.failed);
  return std::string();
}

// A place that fails hides no other.
std::optional<Credentials> Authenticator::NextOf(Tried& tried) const {
  if (tried.next == nullptr) tried.next = source_();
  for (size_t i = 0; i < kMaxCredentials && tried.credentials.size() < kMaxCredentials; ++i) {
    absl::StatusOr<std::optional<Credentials>> next = tried.next();
    if (next.ok() && !next->has_value()) return std::nullopt;
    if (!next.ok() && tried.failed.ok()) tried.failed = next.status();
    if (!next.ok() || Holds(tried.credentials, **next)) continue;
    tried.credentials.push_back(**next);
    return *std::move(next);
  }
  return std::nullopt;
}

// Empty: `credentials` are none for such a challenge.
absl::StatusOr<std::string> Authenticator::HeaderFor(const Challenge& challenge,
                                                     const std::string& scope,
                                                     const std::optional<Credentials>& credentials,
                                                     const http::Request& request) {
  std::string header;
  if (challenge.scheme == "bearer") {
    if (!credentials || credentials->registry_token.empty())
      return FetchToken(challenge, scope, credentials, request);
    header = "Bearer " + credentials->registry_token;
  } else {
    if (!credentials || credentials->username.empty()) return std::string();
    header = BasicHeader(*credentials);
  }
  absl::MutexLock lock(&mu_);
  tokens_[scope] = {header, Clock::time_point::max()};
  return header;
}

absl::StatusOr<http::Request> Authenticator::TokenRequest(
    const Challenge& challenge, const std::string& scope,
    const std::optional<Credentials>& credentials) const {
  const std::string realm = Param(challenge, "realm"), service = Param(challenge, "service");
  http::Request request;
  request.timeout = std::chrono::seconds(60);
  ASSIGN_OR_RETURN(request.url, http::ResolveUrl(realm, realm));
  if (!plain_http_ && !http::IsHttps(request.url))
    return InvalidArgument("the registry sends us to a token service without https");
  if (credentials && !credentials->identity_token.empty()) {
    request.method = "POST";
    request.headers.Add("Content-Type", "application/x-www-form-urlencoded");
    ASSIGN_OR_RETURN(request.body, Form({{"grant_type", "refresh_token"},
                                         {"service", service},
                                         {"scope", scope},
                                         {"client_id", "kapsule"},
                                         {"refresh_token", credentials->identity_token}}));
    return request;
  }
  if (!service.empty()) {
    ASSIGN_OR_RETURN(request.url, http::AddQuery(request.url, "service", service));
  }
  ASSIGN_OR_RETURN(request.url, http::AddQuery(request.url, "scope", scope));
  if (credentials) request.headers.Add("Authorization", BasicHeader(*credentials));
  return request;
}

absl::StatusOr<std::string> Authenticator::FetchToken(const Challenge& challenge,
                                                      const std::string& scope,
                                                      const std::optional<Credentials>& credentials,
                                                      const http::Request& request) {
  ASSIGN_OR_RETURN(http::Request question, TokenRequest(challenge, scope, credentials));
  question.deadline = request.deadline;
  question.stopped = request.stopped;
  ASSIGN_OR_RETURN(const http::Response response,
                   WithRetries(retry_, [&] { return client_.Send(question, kMaxTokenBytes); }));
  if (response.status != 200) {
    const absl::Status status = AnswerStatus("token service", response);
    // RFC 6749, section 5.2: a refresh token that is not valid.
    const bool not_valid = response.status == 400 && question.method == "POST";
    return not_valid ? absl::UnauthenticatedError(Message(status)) : status;
  }
  const absl::StatusOr<Json> json = ParseJson(response.body, kMaxTokenBytes);
  if (!json.ok()) return InvalidArgument("token service: its answer is not JSON");
  const absl::StatusOr<std::string> token = FindMember(*json, "token") != nullptr
                                                ? StringMember(*json, "token")
                                                : StringMember(*json, "access_token");
  if (!token.ok()) return Annotate(token.status(), "token service");
  if (token->size() > kMaxHeaderBytes)
    return InvalidArgument("token service: its token has {} bytes", token->size());
  const seconds life(std::min<uint64_t>(
      UintMember(*json, "expires_in").value_or(kTokenLife.count()), kMaxTokenLife.count()));
  absl::MutexLock lock(&mu_);
  tokens_[scope] = {"Bearer " + *token, Clock::now() + life - kRenewBefore};
  return tokens_[scope].header;
}

}  // namespace kapsule::registry
