// libcurl handles, kept with their connections. Private to this folder.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <curl/curl.h>

#include <memory>
#include <vector>

#include "core/base/status.h"

namespace kapsule::http {

// An easy handle and the multi handle that drives it and keeps its connections.
class Handles {
 public:
  static absl::StatusOr<std::unique_ptr<Handles>> Create();
  ~Handles();
  CURL* easy() { return easy_; }
  CURLM* multi() { return multi_; }

 private:
  Handles(CURL* easy, CURLM* multi) : easy_(easy), multi_(multi) {}
  CURL* const easy_;
  CURLM* const multi_;
};

// Thread-safe.
class HandlePool {
 public:
  absl::StatusOr<std::unique_ptr<Handles>> Take();
  void Return(std::unique_ptr<Handles> handles);

 private:
  absl::Mutex mu_;
  std::vector<std::unique_ptr<Handles>> idle_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kapsule::http
