#include "core/registry/credential_helper.h"

#include <algorithm>

#include "core/base/json.h"
#include "core/registry/program.h"

namespace kapsule::registry {
namespace {

constexpr size_t kMaxAnswerBytes = 64 * 1024;
constexpr size_t kMaxServerBytes = 1024;
constexpr char kIdentityUser[] = "<token>";

absl::StatusOr<Credentials> ParseAnswer(const std::string& answer) {
  // The parser's own message could quote the answer.
  const absl::StatusOr<Json> json = ParseJson(answer, kMaxAnswerBytes);
  if (!json.ok()) return InvalidArgument("its answer is not JSON");
  ASSIGN_OR_RETURN(std::string username, StringMember(*json, "Username"));
  ASSIGN_OR_RETURN(std::string secret, StringMember(*json, "Secret"));
  if (username == kIdentityUser) return Credentials{"", "", std::move(secret)};
  return Credentials{std::move(username), std::move(secret), ""};
}

absl::StatusOr<Credentials> Ask(const std::string& program, const std::string& server,
                                std::chrono::milliseconds timeout) {
  ASSIGN_OR_RETURN(const ProgramOutput output, RunProgram({.file = program,
                                                           .arguments = {"get"},
                                                           .environment = {},
                                                           .timeout = timeout,
                                                           .max_output = kMaxAnswerBytes},
                                                          server));
  if (output.succeeded) return ParseAnswer(output.text);
  if (output.text.starts_with("credentials not found")) return NotFound("it has no credentials");
  return FailedPrecondition("it failed");
}

}  // namespace

absl::StatusOr<Credentials> AskCredentialHelper(const std::string& helper,
                                                const std::string& server,
                                                std::chrono::milliseconds timeout) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  };
  if (helper.empty() || helper.size() > 64 || !std::all_of(helper.begin(), helper.end(), allowed))
    return InvalidArgument("the configured credential helper is no program name");
  if (server.size() > kMaxServerBytes) return InvalidArgument("server name too long");
  const std::string program = "docker-credential-" + helper;
  absl::StatusOr<Credentials> credentials = Ask(program, server, timeout);
  if (!credentials.ok()) return Annotate(credentials.status(), program);
  return credentials;
}

}  // namespace kapsule::registry
