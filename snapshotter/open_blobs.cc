#include "snapshotter/open_blobs.h"

#include <absl/time/clock.h>

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>

#include "core/base/log.h"

namespace kapsule::snapshotter {

// An image that is opened later may know less of where the blob is.
RemoteBlob OpenBlobs::WithKnownImages(RemoteBlob blob) const {
  const absl::MutexLock lock(&mu_);
  const auto open = blobs_.find(blob.digest);
  if (open == blobs_.end()) return blob;
  std::vector<std::string> images = open->second.images;
  for (std::string& image : blob.images) {
    if (std::find(images.begin(), images.end(), image) == images.end())
      images.push_back(std::move(image));
  }
  blob.images = std::move(images);
  return blob;
}

void OpenBlobs::Add(const RemoteBlob& blob) {
  const absl::MutexLock lock(&mu_);
  blobs_.insert_or_assign(blob.digest, blob);
}

void OpenBlobs::Remove(const oci::Digest& digest) {
  const absl::MutexLock lock(&mu_);
  doubted_.erase(digest);
  blobs_.erase(digest);
}

void OpenBlobs::Doubt(const oci::Digest& digest) {
  const absl::MutexLock lock(&mu_);
  if (blobs_.contains(digest)) doubted_[digest] = false;
}

void OpenBlobs::DoubtAll() {
  const absl::MutexLock lock(&mu_);
  for (const auto& [digest, blob] : blobs_) doubted_[digest] = false;
}

bool OpenBlobs::AnyDoubted() const {
  const absl::MutexLock lock(&mu_);
  return !doubted_.empty();
}

// The second round has what the first one did not get in its short time.
void OpenBlobs::Reopen(FetchChannel& channel, const std::function<bool()>& go_on) {
  for (const bool tried : {false, true}) Round(channel, go_on, tried);
}

std::vector<RemoteBlob> OpenBlobs::DoubtedOnes(bool tried) const {
  const absl::MutexLock lock(&mu_);
  std::vector<RemoteBlob> ones;
  for (const auto& [digest, was_tried] : doubted_)
    if (was_tried == tried) ones.push_back(blobs_.at(digest));
  return ones;
}

void OpenBlobs::Round(FetchChannel& channel, const std::function<bool()>& go_on, bool tried) {
  const std::vector<RemoteBlob> blobs = DoubtedOnes(tried);
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    while (go_on() && !channel.ended()) {
      const size_t i = next++;
      if (i >= blobs.size()) return;
      ReopenOne(channel, blobs[i], tried);
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(kAtOnce);
  try {
    while (threads.size() + 1 < std::min(kAtOnce, blobs.size())) threads.emplace_back(work);
  } catch (const std::system_error& e) {
    log::warn("blobs are opened again by {} threads only: {}", threads.size() + 1, e.what());
  }
  work();
  for (std::thread& thread : threads) thread.join();
}

// What cannot be opened now is tried again: its reads wait or fail meanwhile.
void OpenBlobs::ReopenOne(FetchChannel& channel, const RemoteBlob& blob, bool tried) {
  const absl::Status status =
      OpenAndTell(channel, blob, absl::Now() + (tried ? kPatience : kFirstPatience));
  if (channel.ended()) return;
  // Whoever opens a layer brings its file along.
  if (!status.ok() && tried && !absl::IsNotFound(status))
    log::warn("open blob {} again: {}", blob.digest.text(), Describe(status));
  if (!NoteTried(blob.digest, status.ok())) close_(blob.digest);
}

absl::Status OpenBlobs::OpenAndTell(FetchChannel& channel, const RemoteBlob& blob,
                                    absl::Time deadline) const {
  ASSIGN_OR_RETURN(const control::ReceivedFetchReply reply,
                   channel.Call(BlobOpenRequest(blob, calls_.credentials, deadline), {}, deadline));
  if (reply.fds.size() != 1) return Internal("{} gave no file", FetchProtocol::kPeer);
  return Annotate(calls_.use_file(blob.digest, reply.fds.front()),
                  "give kapsule-fuse the file that it is read from");
}

// Whether the blob is open still.
bool OpenBlobs::NoteTried(const oci::Digest& digest, bool ok) {
  const absl::MutexLock lock(&mu_);
  const auto doubted = doubted_.find(digest);
  if (doubted != doubted_.end()) {
    if (ok) {
      doubted_.erase(doubted);
    } else {
      doubted->second = true;
    }
  }
  return blobs_.contains(digest);
}

}  // namespace kapsule::snapshotter
