#include "snapshotter/blob_fetcher.h"

#include <absl/time/clock.h>

#include <algorithm>
#include <charconv>

#include "core/base/log.h"

namespace kapsule::snapshotter {
namespace {

constexpr absl::Duration kMinPause = absl::Milliseconds(100), kMaxPause = absl::Seconds(10);
constexpr absl::Duration kRetryPause = absl::Seconds(2);  // of what kapsule-fetch or -fuse refuse
constexpr absl::Duration kCallTime = absl::Seconds(5);
// How often open blobs are opened again: whom their images are pulled as changes.
constexpr absl::Duration kRefreshPause = absl::Minutes(10);
constexpr size_t kMaxPidText = 32;

std::string_view ProgramName() { return FetchProtocol::kPeer; }

}  // namespace

BlobFetcher::BlobFetcher(Options options) : options_(std::move(options)) {
  watcher_ = std::thread([this] { Watch(); });
}

BlobFetcher::~BlobFetcher() {
  bool leaving;
  {
    const absl::MutexLock lock(&mu_);
    stopping_ = true;
    leaving = leaving_;
  }
  watcher_.join();
  const Channel channel = AwaitChannel(nullptr, absl::InfinitePast());
  if (channel != nullptr) channel->Close();
  if (process_ == nullptr) return;
  if (leaving) {
    process_->Leave();
    return;
  }
  process_.reset();
  std::error_code error;
  std::filesystem::remove(options_.pid_file, error);
}

void BlobFetcher::Leave() {
  const absl::MutexLock lock(&mu_);
  leaving_ = true;
}

void BlobFetcher::EndEarlier() const {
  const absl::StatusOr<std::string> text = ReadFile(options_.pid_file, kMaxPidText);
  if (!text.ok()) return;
  pid_t pid = 0;
  std::from_chars(text->data(), text->data() + text->size(), pid);
  if (pid <= 1) return;
  absl::StatusOr<std::unique_ptr<DaemonProcess>> earlier = DaemonProcess::Find(pid, ProgramName());
  if (earlier.ok()) log::info("ending {} of an earlier run, pid {}", ProgramName(), pid);
}

void BlobFetcher::Watch() {
  EndEarlier();
  absl::Duration pause = kMinPause;
  for (;;) {
    Channel channel = AwaitChannel(nullptr, absl::InfinitePast());
    if (channel == nullptr) {
      const absl::Status started = StartProcess();
      if (!started.ok()) log::error("{}", Describe(started));
      if (!Pause(started.ok() ? absl::ZeroDuration() : pause)) return;
      pause = std::min(2 * pause, kMaxPause);
      continue;
    }
    bool hand_over, reopen;
    {
      const absl::MutexLock lock(&mu_);
      hand_over = hand_over_;
      reopen = !unknown_.empty();
    }
    if (hand_over) {
      const absl::Status handed = HandOver(*channel);
      if (!handed.ok()) log::warn("{}", Describe(handed));
    }
    if (reopen) Reopen(*channel);
    {
      const absl::MutexLock lock(&mu_);
      reopen = hand_over_ || !unknown_.empty();
    }
    const absl::Time since = absl::Now();
    if (!Pause(reopen ? kRetryPause : kRefreshPause)) return;
    if (absl::Now() - since >= kRefreshPause) RefreshAll();
    if (absl::Now() - since > kMaxPause) pause = kMinPause;  // it lives
    if (!channel->ended()) continue;
    DropProcess();
    if (!Pause(pause)) return;
    pause = std::min(2 * pause, kMaxPause);
  }
}

void BlobFetcher::DropProcess() {
  Channel channel;
  {
    const absl::MutexLock lock(&mu_);
    channel = std::move(channel_);
    pid_ = -1;
  }
  channel->Close();
  log::warn("{} has ended: {}", ProgramName(), process_->End());
}

bool BlobFetcher::Pause(absl::Duration duration) {
  const absl::MutexLock lock(&mu_);
  const auto woken = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return stopping_ || changed_; };
  mu_.AwaitWithTimeout(absl::Condition(&woken), duration);
  changed_ = false;
  return !stopping_;
}

absl::Status BlobFetcher::StartProcess() {
  ASSIGN_OR_RETURN(control::SocketPair pair, control::MakeSocketPair());
  std::vector<std::string> arguments = options_.arguments;
  arguments.insert(arguments.begin(), {"--control-fd", std::to_string(DaemonProcess::kFirstFd)});
  ASSIGN_OR_RETURN(
      process_, DaemonProcess::Start(options_.program, std::move(arguments), {pair.theirs.get()}));
  RETURN_IF_ERROR(
      WriteFileAtomic(options_.pid_file, AsBytes(std::to_string(process_->pid())), 0600));
  const absl::MutexLock lock(&mu_);
  hand_over_ = true;
  pid_ = process_->pid();
  for (const auto& [digest, blob] : blobs_) unknown_.insert(digest);
  channel_ = std::make_shared<FetchChannel>(std::move(pair.ours), [this] {
    const absl::MutexLock end(&mu_);
    changed_ = true;
  });
  return absl::OkStatus();
}

absl::Status BlobFetcher::HandOver(FetchChannel& channel) {
  ASSIGN_OR_RETURN(const control::SocketPair pair, control::MakeSocketPair());
  v1::FetchRequest request;
  request.mutable_connect();
  RETURN_IF_ERROR(channel.Call(request, {pair.theirs.get()}, absl::Now() + kCallTime).status());
  {
    const absl::MutexLock lock(&mu_);
    hand_over_ = false;  // unless it is asked for again meanwhile
  }
  const absl::Status handed = options_.hand_over(pair.ours);
  if (handed.ok()) return absl::OkStatus();
  const absl::MutexLock lock(&mu_);
  hand_over_ = true;
  return Annotate(handed, fmt::format("give kapsule-fuse the socket of {}", ProgramName()));
}

void BlobFetcher::HandOverAgain() {
  const absl::MutexLock lock(&mu_);
  hand_over_ = changed_ = true;
}

void BlobFetcher::RefreshAll() {
  const absl::MutexLock lock(&mu_);
  for (const auto& [digest, blob] : blobs_) unknown_.insert(digest);
}

// What cannot be opened now is tried again: its reads wait or fail meanwhile.
void BlobFetcher::Reopen(FetchChannel& channel) {
  std::vector<RemoteBlob> blobs;
  {
    const absl::MutexLock lock(&mu_);
    for (const oci::Digest& digest : unknown_) blobs.push_back(blobs_.at(digest));
  }
  for (const RemoteBlob& blob : blobs) {
    const absl::Time deadline = absl::Now() + kRetryPause;
    const absl::Status opened = channel.Call(OpenRequest(blob, deadline), {}, deadline).status();
    if (!opened.ok()) log::warn("open blob {} again: {}", blob.digest.text(), Describe(opened));
    bool closed;
    {
      const absl::MutexLock lock(&mu_);
      if (stopping_ || channel.ended()) return;
      if (opened.ok()) unknown_.erase(blob.digest);
      closed = !blobs_.contains(blob.digest);
    }
    if (closed) Close(blob.digest);  // meanwhile
  }
}

BlobFetcher::Channel BlobFetcher::AwaitChannel(const FetchChannel* not_this, absl::Time deadline) {
  const absl::MutexLock lock(&mu_);
  const auto there = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return stopping_ || (channel_ != nullptr && channel_.get() != not_this);
  };
  mu_.AwaitWithDeadline(absl::Condition(&there), deadline);
  return channel_.get() == not_this ? nullptr : channel_;
}

v1::FetchRequest BlobFetcher::OpenRequest(const RemoteBlob& blob, absl::Time deadline) const {
  v1::FetchRequest request;
  v1::FetchOpen& open = *request.mutable_open();
  open.set_digest(blob.digest.hex());
  open.set_size(blob.size);
  open.mutable_index()->set_version(blob.index.version);
  open.mutable_index()->set_header_offset(blob.index.offset);
  open.mutable_index()->set_header_length(blob.index.length);
  open.mutable_index()->set_root(blob.index.root.hex());
  const absl::Duration left = std::max(deadline - absl::Now(), absl::Milliseconds(1));
  open.set_timeout_ms(
      static_cast<uint32_t>(std::min<int64_t>(absl::ToInt64Milliseconds(left) + 1, UINT32_MAX)));
  for (const std::string& image : blob.images) {
    if (open.sources_size() == control::kMaxFetchSources) break;
    open.add_sources(image);
    const std::optional<PullCredentials> known = options_.credentials(image);
    if (!known) continue;
    v1::FetchCredentials& told = *open.add_credentials();
    told.set_host(known->host);
    told.set_username(known->username);
    told.set_password(std::string(known->password.text()));
    told.set_identity_token(std::string(known->identity_token.text()));
    told.set_registry_token(std::string(known->registry_token.text()));
  }
  return request;
}

// An image that is opened later may know less of where the blob is.
RemoteBlob BlobFetcher::WithKnownImages(RemoteBlob blob) {
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

absl::StatusOr<UniqueFd> BlobFetcher::Open(const RemoteBlob& opened, absl::Time deadline) {
  const RemoteBlob blob = WithKnownImages(opened);
  Channel asked;
  for (;;) {
    const Channel channel = AwaitChannel(asked.get(), deadline);
    if (channel == nullptr) return Unavailable("{} is not running", ProgramName());
    absl::StatusOr<control::ReceivedFetchReply> reply =
        channel->Call(OpenRequest(blob, deadline), {}, deadline);
    if (!reply.ok() && channel->ended() && absl::Now() < deadline) {
      asked = channel;  // it died: the next one is asked
      continue;
    }
    if (absl::IsDeadlineExceeded(reply.status())) return Unavailable("{}", Message(reply.status()));
    RETURN_IF_ERROR(reply.status());
    if (reply->fds.size() != 1) return Internal("{} gave no file", ProgramName());
    const absl::MutexLock lock(&mu_);
    blobs_.insert_or_assign(blob.digest, blob);
    // It may have come from a process that has died since.
    if (channel_ != channel) {
      unknown_.insert(blob.digest);
      changed_ = true;
    }
    return std::move(reply->fds.front());
  }
}

// A process that is not there, or dies now, has no blob open.
void BlobFetcher::Tell(v1::FetchRequest request) {
  const Channel channel = AwaitChannel(nullptr, absl::InfinitePast());
  if (channel == nullptr) return;
  const absl::Status told = channel->Call(std::move(request), {}, absl::Now() + kCallTime).status();
  if (!told.ok() && !channel->ended()) log::warn("{}", Describe(told));
}

void BlobFetcher::Close(const oci::Digest& digest) {
  {
    const absl::MutexLock lock(&mu_);
    unknown_.erase(digest);
    blobs_.erase(digest);
  }
  // Also where its opening was given up here, but may have been done there.
  v1::FetchRequest request;
  request.mutable_close()->set_digest(digest.hex());
  Tell(std::move(request));
}

void BlobFetcher::Forget(const oci::Digest& digest) {
  v1::FetchRequest request;
  request.mutable_forget()->set_digest(digest.hex());
  Tell(std::move(request));
}

pid_t BlobFetcher::pid() {
  const absl::MutexLock lock(&mu_);
  return pid_;
}

absl::StatusOr<v1::FetchStats> BlobFetcher::Stats(absl::Time deadline) {
  const Channel channel = AwaitChannel(nullptr, absl::InfinitePast());
  if (channel == nullptr) return Unavailable("{} is not running", ProgramName());
  v1::FetchRequest request;
  request.mutable_get_stats();
  ASSIGN_OR_RETURN(const control::ReceivedFetchReply reply,
                   channel->Call(std::move(request), {}, deadline));
  return reply.message.stats();
}

}  // namespace kapsule::snapshotter
