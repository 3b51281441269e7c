// What is asked of kapsule-fetch, and what it says.
#include <absl/time/clock.h>

#include <algorithm>

#include "snapshotter/fuse/remote_blob.h"

namespace kapsule::fuse {

void RemoteBlob::Say(decltype(control::FetchPacket::body) body) {
  send_({digest_, std::move(body)});
}

void RemoteBlob::SayWant(const Blocks& run) {
  for (uint64_t first = run.first; first < run.end; first += control::kMaxFetchBlocks) {
    const uint64_t count = std::min<uint64_t>(run.end - first, control::kMaxFetchBlocks);
    Say(control::FetchWant{first, static_cast<uint32_t>(count)});
  }
}

// Asks for those that are not there and were not asked for. What is about to be
// dropped is asked for after that.
void RemoteBlob::Want(const Blocks& blocks) {
  const auto dropped = [this](uint64_t block) {
    mu_.AssertHeld();
    return std::any_of(drops_.begin(), drops_.end(),
                       [block](const Drop& drop) { return drop.blocks.Contain(block); });
  };
  Blocks run;
  for (uint64_t block = blocks.first; block < blocks.end; ++block) {
    const bool ask = !Has(block) && suspected_.count(block) == 0 && !dropped(block) &&
                     wanted_.insert(block).second;
    if (!ask) continue;
    if (block != run.end) {
      SayWant(run);
      run.first = block;
    }
    run.end = block + 1;
  }
  SayWant(run);
}

void RemoteBlob::WantForWaiters(const Blocks& blocks) {
  for (const Waiter& waiter : waiters_)
    if (waiter.blocks.Overlap(blocks)) Want(waiter.blocks);
}

// A block that is there again was announced after it was to be dropped, so the answer lets
// go of it no more.
bool RemoteBlob::IsRead(const Drop& drop) const {
  for (const Blocks* const reading : reading_)
    for (uint64_t block = std::max(reading->first, drop.blocks.first);
         block < std::min(reading->end, drop.blocks.end); ++block)
      if (!Has(block)) return true;
  return false;
}

void RemoteBlob::AnswerDrops() {
  for (size_t i = 0; i < drops_.size();) {
    if (IsRead(drops_[i])) {
      ++i;
      continue;
    }
    const auto [blocks, question] = drops_[i];
    drops_.erase(drops_.begin() + static_cast<ptrdiff_t>(i));
    Say(control::FetchDropped{blocks.first, static_cast<uint32_t>(blocks.end - blocks.first),
                              question});
    WantForWaiters(blocks);
  }
}

void RemoteBlob::Handle(const control::FetchPacket& packet) {
  Waiters answered;
  {
    absl::MutexLock lock(&mu_);
    answered = std::visit(
        [this](const auto& body) {
          mu_.AssertHeld();
          return On(body);
        },
        packet.body);
  }
  for (const Waiter& waiter : answered) waiter.then(waiter.status);
}

RemoteBlob::Waiters RemoteBlob::TakeReady(const Blocks& changed) {
  Waiters ready;
  for (auto it = waiters_.begin(); it != waiters_.end();) {
    const auto waiter = it++;
    if (waiter->blocks.Overlap(changed) && HasAll(waiter->blocks))
      ready.splice(ready.end(), waiters_, waiter);
  }
  return ready;
}

// What is there in another file would be holes in this one. It is asked for again when that
// one is known.
RemoteBlob::Waiters RemoteBlob::OnOtherFile() {
  Waiters failed = TakeFailed({0, blocks_},
                              Unavailable("kapsule-fetch has it in a file that kapsule-snapshotter "
                                          "has not handed over yet"),
                              patience_);
  if (waiters_.empty()) wanted_.clear();
  return failed;
}

RemoteBlob::Waiters RemoteBlob::On(const control::FetchHave& have) {
  if (local_) return {};
  if (!(have.file == file_.id)) return OnOtherFile();
  const Blocks blocks = Inside(have.first, have.blocks.size());
  for (uint64_t block = blocks.first; block < blocks.end; ++block) {
    // It may not know yet that somebody doubts it.
    if (!have.blocks.test(block - have.first) || suspected_.count(block) != 0) continue;
    Set(block, true);
    wanted_.erase(block);
  }
  AnswerDrops();
  return TakeReady(blocks);
}

RemoteBlob::Waiters RemoteBlob::On(const control::FetchChecked& checked) {
  if (checked.block >= blocks_) return {};
  if (checked.file == file_.id) suspected_.erase(checked.block);
  control::FetchHave have{checked.block, {}, checked.file};
  have.blocks.set(0);
  return On(have);
}

RemoteBlob::Waiters RemoteBlob::TakeFailed(const Blocks& blocks, const absl::Status& why,
                                           absl::Duration waited) {
  const absl::Time latest = absl::Now() - waited;
  Waiters failed;
  for (auto it = waiters_.begin(); it != waiters_.end();) {
    const auto waiter = it++;
    if (waited > absl::ZeroDuration() && waiter->since > latest) continue;
    const Blocks common{std::max(waiter->blocks.first, blocks.first),
                        std::min(waiter->blocks.end, blocks.end)};
    uint64_t block = common.first;
    while (block < common.end && Has(block)) ++block;
    if (block >= common.end) continue;
    waiter->status = Annotate(why, fmt::format("block {} did not come", block));
    failed.splice(failed.end(), waiters_, waiter);
  }
  return failed;
}

RemoteBlob::Waiters RemoteBlob::On(const control::FetchFailed& failed) {
  const Blocks blocks = Inside(failed.first, failed.count);
  // Not open there, yet: SendAgain() asks again.
  if (absl::IsAborted(failed.why)) return TakeFailed(blocks, failed.why, patience_);
  wanted_.erase(wanted_.lower_bound(blocks.first), wanted_.lower_bound(blocks.end));
  suspected_.erase(suspected_.lower_bound(blocks.first), suspected_.lower_bound(blocks.end));
  return TakeFailed(blocks, failed.why);
}

RemoteBlob::Waiters RemoteBlob::On(const control::FetchDrop& drop) {
  const Blocks blocks = Inside(drop.first, drop.count);
  for (uint64_t block = blocks.first; block < blocks.end; ++block) Set(block, false);
  wanted_.erase(wanted_.lower_bound(blocks.first), wanted_.lower_bound(blocks.end));
  suspected_.erase(suspected_.lower_bound(blocks.first), suspected_.lower_bound(blocks.end));
  const Blocks all{drop.first, drop.first + drop.count};
  const auto same = std::find_if(drops_.begin(), drops_.end(),
                                 [&](const Drop& known) { return known.blocks == all; });
  // Where there are too many: it is said again after a while.
  if (same != drops_.end()) {
    same->question = drop.question;
  } else if (drops_.size() < kMaxDrops) {
    drops_.push_back({all, drop.question});
  }
  AnswerDrops();
  return {};
}

void RemoteBlob::SendAgain(bool another_connection) {
  absl::MutexLock lock(&mu_);
  if (another_connection) drops_.clear();
  Blocks run;
  for (const uint64_t block : wanted_) {
    if (block != run.end) {
      SayWant(run);
      run.first = block;
    }
    run.end = block + 1;
  }
  SayWant(run);
  for (const uint64_t block : suspected_) Say(control::FetchSuspect{block});
  WantForWaiters({0, blocks_});
}

}  // namespace kapsule::fuse
