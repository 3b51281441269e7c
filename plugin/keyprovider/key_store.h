// The private keys of a folder.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <filesystem>
#include <memory>
#include <vector>

#include "core/crypt/keys.h"

namespace kapsule::keyprovider {

// Thread-safe.
class KeyStore {
 public:
  explicit KeyStore(std::filesystem::path folder) : folder_(std::move(folder)) {}

  // Reads all files of the folder again. A file that holds no key that we can
  // read is passed over with a warning; hidden files and folders are passed over
  // silently. At most 256 keys. An error (the folder cannot be read) leaves the
  // keys as they were.
  absl::Status Reload() ABSL_LOCKS_EXCLUDED(mu_);

  using Keys = std::shared_ptr<const std::vector<crypt::Key>>;
  Keys keys() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  const std::filesystem::path folder_;

  mutable absl::Mutex mu_;  // the pointer only; never held while files are read
  Keys keys_ ABSL_GUARDED_BY(mu_) = std::make_shared<const std::vector<crypt::Key>>();
};

}  // namespace kapsule::keyprovider
