#include "core/http/handles.h"

namespace kapsule::http {
namespace {

constexpr size_t kMaxIdle = 16;

}  // namespace

absl::StatusOr<std::unique_ptr<Handles>> Handles::Create() {
  CURL* easy = curl_easy_init();
  CURLM* multi = easy == nullptr ? nullptr : curl_multi_init();
  if (multi == nullptr) {
    curl_easy_cleanup(easy);
    return ResourceExhausted("no memory for a connection");
  }
  return std::unique_ptr<Handles>(new Handles(easy, multi));
}

Handles::~Handles() {
  curl_easy_cleanup(easy_);
  curl_multi_cleanup(multi_);
}

absl::StatusOr<std::unique_ptr<Handles>> HandlePool::Take() {
  absl::MutexLock lock(&mu_);
  if (idle_.empty()) return Handles::Create();
  std::unique_ptr<Handles> handles = std::move(idle_.back());
  idle_.pop_back();
  return handles;
}

void HandlePool::Return(std::unique_ptr<Handles> handles) {
  curl_easy_reset(handles->easy());
  absl::MutexLock lock(&mu_);
  if (idle_.size() < kMaxIdle) idle_.push_back(std::move(handles));
}

}  // namespace kapsule::http
