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
// What the token specification says where the service says nothing, and the
// least that is worth renewing for.
constexpr seconds kTokenLife{60};
constexpr seconds kMaxTokenLife{3600};
constexpr seconds kRenewBefore{10};

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
                                                 const http::Request& request) {
  Challenge challenge;
  {
    absl::MutexLock lock(&mu_);
    if (!challenge_) return std::string();
    const auto token = tokens_.find(scope);
    if (token != tokens_.end() && Clock::now() < token->second.renew) return token->second.header;
    challenge = *challenge_;
  }
  return Respond(challenge, scope, request);
}

absl::StatusOr<std::string> Authenticator::Answer(const http::Headers& headers,
                                                  const std::string& scope,
                                                  const std::string& refused,
                                                  const http::Request& request) {
  const std::optional<Challenge> challenge = Choose(headers);
  if (!challenge) return std::string();
  {
    absl::MutexLock lock(&mu_);
    challenge_ = challenge;
    const auto token = tokens_.find(scope);
    // Another thread that was refused has a new one already.
    if (token != tokens_.end() && token->second.header != refused &&
        Clock::now() < token->second.renew)
      return token->second.header;
    tokens_.erase(scope);
  }
  ++answers_;
  return Respond(*challenge, scope, request);
}

absl::StatusOr<std::string> Authenticator::Respond(const Challenge& challenge,
                                                   const std::string& scope,
                                                   const http::Request& request) {
  ASSIGN_OR_RETURN(const std::optional<Credentials> credentials, source_());
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
  if (response.status != 200) return AnswerStatus("token service", response);
  const absl::StatusOr<Json> json = ParseJson(response.body, kMaxTokenBytes);
  if (!json.ok()) return InvalidArgument("token service: its answer is not JSON");
  const absl::StatusOr<std::string> token = FindMember(*json, "token") != nullptr
                                                ? StringMember(*json, "token")
                                                : StringMember(*json, "access_token");
  if (!token.ok()) return Annotate(token.status(), "token service");
  const seconds life(std::min<uint64_t>(
      UintMember(*json, "expires_in").value_or(kTokenLife.count()), kMaxTokenLife.count()));
  absl::MutexLock lock(&mu_);
  tokens_[scope] = {"Bearer " + *token, Clock::now() + life - kRenewBefore};
  return tokens_[scope].header;
}

}  // namespace kapsule::registry
