#include "snapshotter/fuse_life_watch.h"

#include <absl/time/clock.h>

namespace kapsule::snapshotter {
namespace {

constexpr absl::Duration kHolderRound = absl::Seconds(2);

}  // namespace

FuseLifeWatch::FuseLifeWatch(std::shared_ptr<ControlChannel> channel, pid_t pid,
                             std::shared_ptr<const FuseConnection> connection,
                             absl::Duration patience, std::function<void()> on_change)
    : channel_(std::move(channel)),
      pid_(pid),
      connection_(std::move(connection)),
      judges_(patience != absl::InfiniteDuration()),
      round_(judges_ ? patience / kRounds : kHolderRound),
      on_change_(std::move(on_change)),
      last_well_(absl::Now()) {
  thread_ = std::thread([this] { Run(); });
}

FuseLifeWatch::~FuseLifeWatch() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

// Rounds and not time: where this process was stopped too, that one gets its time
// afterwards.
void FuseLifeWatch::Run() {
  for (int bad = 0;;) {
    const absl::Time end = absl::Now() + round_;
    const std::string what = Look(end);
    bad = what.empty() ? 0 : bad + 1;
    {
      absl::MutexLock lock(&mu_);
      if (bad == 0) last_well_ = absl::Now();
      if (bad == kRounds) stuck_ = what;
    }
    if (bad == kRounds) on_change_();
    if (!Sleep(end)) return;
  }
}

std::string FuseLifeWatch::Look(absl::Time end) {
  const bool answers = !judges_ || Answers(end);
  const bool requests_lie = RequestsLie();
  if (!judges_) return "";
  const absl::StatusOr<ProcessActivity> now = ActivityOf(pid_);
  if (!now.ok()) return "";  // nothing that is known to be stuck
  const std::optional<ProcessActivity> before = std::exchange(before_, *now);
  if (!before || now->traced) return "";
  if (!answers && now->main.StillSince(before->main)) return "it answers nothing";
  if (requests_lie && now->all.StillSince(before->all)) return "it takes no requests";
  return "";
}

// A second Serve is answered by the code AlreadyExists, and by nothing else.
bool FuseLifeWatch::Answers(absl::Time deadline) const {
  v1::DataPlaneRequest request;
  request.mutable_serve();
  const absl::Status status = channel_->Call(std::move(request), {}, deadline).status();
  return !absl::IsDeadlineExceeded(status) && !absl::IsUnavailable(status);
}

bool FuseLifeWatch::RequestsLie() {
  const absl::StatusOr<bool> lie = connection_->RequestsLie();
  const bool answers = !absl::IsUnavailable(lie.status());
  bool changed;
  {
    absl::MutexLock lock(&mu_);
    changed = std::exchange(holder_answers_, answers) != answers;
  }
  if (changed) on_change_();
  return lie.value_or(false);
}

bool FuseLifeWatch::Sleep(absl::Time until) {
  absl::MutexLock lock(&mu_);
  return !mu_.AwaitWithDeadline(absl::Condition(&stopping_), until);
}

std::string FuseLifeWatch::stuck() const {
  absl::MutexLock lock(&mu_);
  return stuck_;
}

absl::Time FuseLifeWatch::last_well() const {
  absl::MutexLock lock(&mu_);
  return last_well_;
}

bool FuseLifeWatch::holder_answers() const {
  absl::MutexLock lock(&mu_);
  return holder_answers_;
}

}  // namespace kapsule::snapshotter
