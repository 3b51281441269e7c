#include "snapshotter/fuse/key_fetcher.h"

#include <absl/time/clock.h>

#include <algorithm>
#include <new>

#include "core/base/log.h"

namespace kapsule::fuse {
namespace {

constexpr absl::Duration kMinBackOff = absl::Milliseconds(100), kMaxBackOff = absl::Seconds(2);
// After a no, which somebody may take back.
constexpr absl::Duration kMinRefusedBackOff = absl::Seconds(2),
                         kMaxRefusedBackOff = absl::Seconds(30);
// Of one attempt: a keyprovider that hangs must not keep the others' threads.
constexpr absl::Duration kMaxAttempt = absl::Seconds(5);

// Whether the next attempt may end better: nobody has said no.
bool MayStillCome(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsResourceExhausted(status);
}

}  // namespace

void KeyFetcher::Fetch(const ViewPtr& view, std::shared_ptr<const HeldLayer> held) {
  auto errand = std::make_shared<Errand>();
  errand->view = view;
  errand->held = std::move(held);
  {
    absl::MutexLock lock(&errand->mu);
    errand->last = DeadlineExceeded("the keyprovider has not answered");
  }
  // The errand ends with success, or with the view.
  chores_.AddAt(absl::Now() + grace_, [weak = std::weak_ptr(errand)] {
    if (const std::shared_ptr<Errand> late = weak.lock()) EndGrace(*late);
  });
  Add(view->encrypted() ? keyed_ : plain_, absl::Now(), std::move(errand));
}

void KeyFetcher::Add(TaskPool& pool, absl::Time time, std::shared_ptr<Errand> errand) {
  pool.AddAt(time, [this, &pool, errand = std::move(errand)] { Try(pool, errand); });
}

void KeyFetcher::EndGrace(Errand& errand) {
  absl::Status why;
  {
    absl::MutexLock lock(&errand.mu);
    why = errand.last;
  }
  if (const ViewPtr view = errand.view.lock()) view->FailLayer(why);
}

void KeyFetcher::Try(TaskPool& pool, std::shared_ptr<Errand> errand) {
  absl::Status status;
  try {
    status = opener_.Reopen(errand->view, errand->held->blob, errand->held->record,
                            absl::Now() + kMaxAttempt);
  } catch (const std::bad_alloc&) {
    status = ResourceExhausted("no memory");
  }
  if (status.ok()) return;
  const bool refused = !MayStillCome(status);
  errand->back_off = refused
                         ? std::clamp(2 * errand->back_off, kMinRefusedBackOff, kMaxRefusedBackOff)
                         : std::clamp(2 * errand->back_off, kMinBackOff, kMaxBackOff);
  {
    absl::MutexLock lock(&errand->mu);
    errand->last = status;
  }
  if (refused)
    if (const ViewPtr view = errand->view.lock()) view->FailLayer(status);
  const absl::Time next = absl::Now() + errand->back_off;
  Add(pool, next, std::move(errand));
}

}  // namespace kapsule::fuse
