#include "kapsule-ctl/image_location.h"

#include <unistd.h>

#include <cerrno>

#include "core/base/secret.h"
#include "core/content/layout_source.h"
#include "core/content/layout_target.h"
#include "core/registry/repository.h"
#include "kapsule-ctl/staged_target.h"

namespace kapsule::ctl {
namespace {

constexpr std::string_view kLayoutPrefix = "oci:";
constexpr size_t kMaxPasswordBytes = 64 << 10;

registry::Options RegistryOptions(const RegistryFlags& flags) {
  registry::Options options;
  options.username = flags.username;
  options.password = flags.password;
  options.insecure = flags.insecure;
  options.http.ca_file = flags.ca_file;
  return options;
}

absl::StatusOr<std::string> ReadStdin() {
  std::string text(kMaxPasswordBytes + 1, '\0');
  size_t length = 0;
  while (length < text.size()) {
    const ssize_t n = read(STDIN_FILENO, text.data() + length, text.size() - length);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "read the password from stdin");
    if (n == 0) break;
    length += static_cast<size_t>(n);
  }
  if (length > kMaxPasswordBytes)
    return InvalidArgument("a password of more than {} bytes on stdin", kMaxPasswordBytes);
  text.resize(length);
  return text;
}

}  // namespace

absl::StatusOr<ImageLocation> ImageLocation::Parse(const std::string& text) {
  ImageLocation location;
  if (!text.starts_with(kLayoutPrefix)) {
    ASSIGN_OR_RETURN(location.reference, oci::Reference::Parse(text));
    return location;
  }
  // As skopeo reads it: the folder's name has no colon.
  const std::string rest = text.substr(kLayoutPrefix.size());
  const size_t colon = rest.find(':');
  location.layout = rest.substr(0, colon);
  if (colon != std::string::npos) location.tag = rest.substr(colon + 1);
  if (location.layout.empty()) return InvalidArgument("\"{}\" is not oci:DIR[:TAG]", text);
  return location;
}

void RegistryFlags::AddTo(CLI::App& verb) {
  verb.add_flag("--insecure", insecure, "Speak plain http to the image's registry");
  CLI::Option* user = verb.add_option("--username", username,
                                      "For the image's registry, in place of Docker's config.json");
  CLI::Option* word =
      verb.add_option("--password", password, "Others can see it: prefer --password-stdin")
          ->needs(user);
  verb.add_flag("--password-stdin", password_stdin, "Read the password from stdin")
      ->needs(user)
      ->excludes(word);
  verb.add_option("--ca-file", ca_file, "Authorities (PEM) that the registry is verified with")
      ->check(CLI::ExistingFile);
}

absl::Status RegistryFlags::ReadPassword() {
  if (!password_stdin) return absl::OkStatus();
  ASSIGN_OR_RETURN(password, ReadStdin());
  while (password.ends_with('\n') || password.ends_with('\r')) password.pop_back();
  if (password.empty()) return InvalidArgument("no password on stdin");
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<oci::ImageSource>> OpenSource(const ImageLocation& location,
                                                             const RegistryFlags& flags,
                                                             const std::string& host) {
  if (!location.layout.empty()) return content::LayoutSource::Open(location.layout, location.tag);
  const bool ours = location.reference.host == host;
  return std::make_unique<registry::Repository>(
      location.reference, ours ? RegistryOptions(flags) : registry::Options());
}

absl::StatusOr<std::unique_ptr<oci::ImageTarget>> OpenTarget(const ImageLocation& location,
                                                             const RegistryFlags& flags) {
  if (location.layout.empty())
    return std::make_unique<registry::Repository>(location.reference, RegistryOptions(flags));
  ASSIGN_OR_RETURN(std::unique_ptr<oci::ImageTarget> layout,
                   content::LayoutTarget::Open(location.layout, location.tag));
  return std::make_unique<StagedTarget>(std::move(layout));
}

std::string CheckImageName(const std::string& text) {
  return Message(oci::Reference::Parse(text).status());
}

std::string CheckImageLocation(const std::string& text) {
  return Message(ImageLocation::Parse(text).status());
}

}  // namespace kapsule::ctl
