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

BlobFetcher::BlobFetcher(Options options)
    : options_(std::move(options)),
      blobs_(options_.blobs, [this](const oci::Digest& digest) { CloseUnlessAskedFor(digest); }) {
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
    bool hand_over;
    {
      const absl::MutexLock lock(&mu_);
      hand_over = hand_over_;
    }
    if (hand_over) {
      const absl::Status handed = HandOver(*channel);
      if (!handed.ok()) log::warn("{}", Describe(handed));
    }
    blobs_.Reopen(*channel, [this] { return IsCalm(); });
    {
      const absl::MutexLock lock(&mu_);
      hand_over = hand_over_;
    }
    const absl::Time since = absl::Now();
    if (!Pause(hand_over || blobs_.AnyDoubted() ? kRetryPause : kRefreshPause)) return;
    if (absl::Now() - since >= kRefreshPause) blobs_.DoubtAll();
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

// Nothing waits for the watching thread.
bool BlobFetcher::IsCalm() {
  const absl::MutexLock lock(&mu_);
  return !stopping_ && !changed_;
}

absl::Status BlobFetcher::StartProcess() {
  ASSIGN_OR_RETURN(control::SocketPair pair, control::MakeSocketPair());
  std::vector<std::string> arguments = options_.arguments;
  arguments.insert(arguments.begin(), {"--control-fd", std::to_string(DaemonProcess::kFirstFd)});
  ASSIGN_OR_RETURN(
      process_, DaemonProcess::Start(options_.program, std::move(arguments), {pair.theirs.get()}));
  RETURN_IF_ERROR(
      WriteFileAtomic(options_.pid_file, AsBytes(std::to_string(process_->pid())), 0600));
  blobs_.DoubtAll();
  const absl::MutexLock lock(&mu_);
  hand_over_ = true;
  pid_ = process_->pid();
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
  if (handed.ok()) {
    blobs_.DoubtAll();
    return absl::OkStatus();
  }
  const absl::MutexLock lock(&mu_);
  hand_over_ = true;
  return Annotate(handed, fmt::format("give kapsule-fuse the socket of {}", ProgramName()));
}

void BlobFetcher::HandOverAgain() {
  const absl::MutexLock lock(&mu_);
  hand_over_ = changed_ = true;
}

void BlobFetcher::GiveFilesAgain() {
  blobs_.DoubtAll();
  const absl::MutexLock lock(&mu_);
  changed_ = true;
}

BlobFetcher::Channel BlobFetcher::AwaitChannel(const FetchChannel* not_this, absl::Time deadline) {
  const absl::MutexLock lock(&mu_);
  const auto there = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return stopping_ || (channel_ != nullptr && channel_.get() != not_this);
  };
  mu_.AwaitWithDeadline(absl::Condition(&there), deadline);
  return channel_.get() == not_this ? nullptr : channel_;
}

absl::StatusOr<UniqueFd> BlobFetcher::Open(const RemoteBlob& opened, absl::Time deadline) {
  ASSIGN_OR_RETURN(const uint64_t opening, BeginOpen(opened.digest, deadline));
  const RemoteBlob blob = blobs_.WithKnownImages(opened);
  Channel from;
  absl::StatusOr<UniqueFd> file = AskForFile(blob, deadline, &from);
  return EndOpen(blob, opening, std::move(file), from);
}

// The end of an earlier opening is told first, so that it is not taken for this one's.
absl::StatusOr<uint64_t> BlobFetcher::BeginOpen(const oci::Digest& digest, absl::Time deadline) {
  const absl::MutexLock lock(&mu_);
  const auto told = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !closing_.contains(digest); };
  if (!mu_.AwaitWithDeadline(absl::Condition(&told), deadline))
    return Unavailable("{} does not answer", ProgramName());
  return asked_for_.emplace(digest, ++last_opening_).first->second;
}

absl::StatusOr<UniqueFd> BlobFetcher::AskForFile(const RemoteBlob& blob, absl::Time deadline,
                                                 Channel* from) {
  for (;;) {
    const Channel channel = AwaitChannel(from->get(), deadline);
    if (channel == nullptr) return Unavailable("{} is not running", ProgramName());
    *from = channel;
    absl::StatusOr<control::ReceivedFetchReply> reply =
        channel->Call(BlobOpenRequest(blob, options_.blobs.credentials, deadline), {}, deadline);
    // Where it died the next one is asked.
    if (!reply.ok() && channel->ended() && absl::Now() < deadline) continue;
    if (absl::IsDeadlineExceeded(reply.status())) return Unavailable("{}", Message(reply.status()));
    RETURN_IF_ERROR(reply.status());
    if (reply->fds.size() != 1) return Internal("{} gave no file", ProgramName());
    return std::move(reply->fds.front());
  }
}

// A blob that was closed meanwhile may have been opened there after that, and nobody
// closes it any more.
absl::StatusOr<UniqueFd> BlobFetcher::EndOpen(const RemoteBlob& blob, uint64_t opening,
                                              absl::StatusOr<UniqueFd> file, const Channel& from) {
  {
    const absl::MutexLock lock(&mu_);
    const auto asked = asked_for_.find(blob.digest);
    if (asked != asked_for_.end() && asked->second == opening) {
      if (!file.ok()) return file;
      blobs_.Add(blob);
      // It may have come from a process that has died since.
      if (channel_ != from) {
        blobs_.Doubt(blob.digest);
        changed_ = true;
      }
      return file;
    }
  }
  CloseUnlessAskedFor(blob.digest);
  RETURN_IF_ERROR(file.status());
  return Unavailable("blob {} was closed while it was being opened", blob.digest.text());
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
    blobs_.Remove(digest);
    if (asked_for_.erase(digest) == 0) return;
    closing_.insert(digest);
  }
  // Also where its opening was given up here, but may have been done there.
  TellClosed(digest);
}

// Who opened it was late, and a later opening may need it open.
void BlobFetcher::CloseUnlessAskedFor(const oci::Digest& digest) {
  {
    const absl::MutexLock lock(&mu_);
    if (asked_for_.contains(digest)) return;
    closing_.insert(digest);
  }
  TellClosed(digest);
}

// Of what is in closing_.
void BlobFetcher::TellClosed(const oci::Digest& digest) {
  v1::FetchRequest request;
  request.mutable_close()->set_digest(digest.hex());
  Tell(std::move(request));
  const absl::MutexLock lock(&mu_);
  closing_.erase(closing_.find(digest));
}

void BlobFetcher::Forget(const oci::Digest& digest) {
  {
    const absl::MutexLock lock(&mu_);
    if (!asked_for_.contains(digest)) return;
  }
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
