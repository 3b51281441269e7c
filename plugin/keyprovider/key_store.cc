#include "plugin/keyprovider/key_store.h"

#include <algorithm>
#include <system_error>

#include "core/base/log.h"

namespace kapsule::keyprovider {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxKeys = 256;

absl::StatusOr<std::vector<fs::path>> FilesOf(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::path> files;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (it->path().filename().native().front() == '.' || it->is_directory(ignored)) continue;
    files.push_back(it->path());
  }
  if (error) return ErrnoStatus(error.value(), "read the keys in " + folder.string());
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

absl::Status KeyStore::Reload() {
  ASSIGN_OR_RETURN(const std::vector<fs::path> files, FilesOf(folder_));
  auto loaded = std::make_shared<std::vector<crypt::Key>>();
  for (const fs::path& file : files) {
    absl::StatusOr<crypt::Key> key = crypt::LoadPrivateKey(file);
    if (!key.ok()) {
      log::warn("passed over: {}", Describe(key.status()));
      continue;
    }
    if (loaded->size() == kMaxKeys) {
      log::warn("passed over: {} and what follows: more than {} keys", file.string(), kMaxKeys);
      break;
    }
    log::info("key {} from {}", crypt::Fingerprint(*key), file.filename().string());
    loaded->push_back(*std::move(key));
  }
  if (loaded->empty()) log::warn("no keys in {}: no layer can be unwrapped", folder_.string());
  absl::MutexLock lock(&mu_);
  keys_ = std::move(loaded);
  return absl::OkStatus();
}

KeyStore::Keys KeyStore::keys() const {
  absl::MutexLock lock(&mu_);
  return keys_;
}

}  // namespace kapsule::keyprovider
