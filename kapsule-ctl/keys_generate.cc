#include <filesystem>
#include <memory>

#include "core/base/file.h"
#include "core/crypt/keys.h"
#include "kapsule-ctl/command.h"

namespace kapsule::ctl {
namespace {
namespace fs = std::filesystem;

struct Options {
  std::string type = "rsa-4096";
  std::string folder;
  bool force = false;
  bool json = false;
};

absl::Status CheckAbsent(const fs::path& path) {
  std::error_code error;
  if (fs::exists(fs::symlink_status(path, error)))
    return AlreadyExists("{}; --force replaces it, and what was encrypted for it stays closed",
                         path.string());
  return absl::OkStatus();
}

absl::Status Generate(const Options& options) {
  const fs::path private_path = fs::path(options.folder) / "private.pem";
  const fs::path public_path = fs::path(options.folder) / "public.pem";
  if (!options.force) {
    RETURN_IF_ERROR(CheckAbsent(private_path));
    RETURN_IF_ERROR(CheckAbsent(public_path));
  }
  ASSIGN_OR_RETURN(const crypt::Key key, crypt::GenerateKey(options.type));
  RETURN_IF_ERROR(MakeDirs(options.folder, 0700));
  RETURN_IF_ERROR(WriteFileAtomic(private_path, crypt::PrivatePem(key).bytes(), 0600));
  if (absl::Status status = WriteFileAtomic(public_path, AsBytes(crypt::PublicPem(key)), 0644);
      !status.ok()) {
    std::error_code ignored;
    fs::remove(private_path, ignored);  // no half pair
    return status;
  }
  const std::string fingerprint = crypt::Fingerprint(key);
  if (options.json)
    return PrintResult(Json{{"type", options.type},
                            {"private", private_path.string()},
                            {"public", public_path.string()},
                            {"fingerprint", fingerprint}});
  return PrintResult(fmt::format("private      {}\npublic       {}\nfingerprint  {}\n",
                                 private_path.string(), public_path.string(), fingerprint));
}

}  // namespace

void AddKeys(CLI::App& app, Action& action) {
  CLI::App* keys = app.add_subcommand("keys", "Key pairs");
  keys->require_subcommand(1);
  CLI::App* generate = keys->add_subcommand("generate", "Makes a key pair for encrypting images");
  auto options = std::make_shared<Options>();
  generate->add_option("--type", options->type, "Kind of key")
      ->check(CLI::IsMember(crypt::KeyTypes()))
      ->capture_default_str();
  generate->add_option("-o,--output", options->folder, "Folder for private.pem and public.pem")
      ->required();
  generate->add_flag("--force", options->force, "Replace existing keys");
  generate->add_flag("--json", options->json, "Print the result as JSON");
  generate->footer(
      "The public key encrypts (kapsule-ctl build --encryption-key keys/public.pem); the private\n"
      "key (mode 0600) belongs to the nodes that run the model, and to your backup.\n\n"
      "Example:\n  kapsule-ctl keys generate --type rsa-4096 -o keys/\n");
  generate->callback([options, &action] { action = [options] { return Generate(*options); }; });
}

}  // namespace kapsule::ctl
