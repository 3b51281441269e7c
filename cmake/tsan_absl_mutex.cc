// Tells ThreadSanitizer of absl::Mutex: Debian's library is not instrumented, so
// without this every access under a lock looks like a race. Linked into the
// programs of the tsan preset alone, by --wrap of these symbols.
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

using absl::Condition;
using absl::CondVar;
using absl::Duration;
using absl::Mutex;
using absl::Time;

void RealLock(Mutex*) asm("__real__ZN4absl7debian35Mutex4LockEv");
void RealUnlock(Mutex*) asm("__real__ZN4absl7debian35Mutex6UnlockEv");
void RealAwait(Mutex*,
               const Condition&) asm("__real__ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE");
bool RealAwaitFor(Mutex*, const Condition&, Duration) asm(
    "__real__ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE");
bool RealAwaitUntil(Mutex*, const Condition&, Time) asm(
    "__real__ZN4absl7debian35Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE");
void RealWait(CondVar*, Mutex*) asm("__real__ZN4absl7debian37CondVar4WaitEPNS0_5MutexE");
bool RealWaitFor(CondVar*, Mutex*, Duration) asm(
    "__real__ZN4absl7debian37CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
bool RealWaitUntil(CondVar*, Mutex*, Time) asm(
    "__real__ZN4absl7debian37CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");

// gRPC's memory is handed over by locks of its own, which are not seen either: what its
// library does with memory is not looked at.
extern "C" const char* __tsan_default_options() { return "ignore_noninstrumented_modules=1"; }

namespace {

// Around what releases a mutex and, in Await(), takes it again. The conditions
// that absl evaluates for other threads meanwhile are read under its lock.
struct Released {
  explicit Released(Mutex* mutex) : mutex(mutex) {
    __tsan_release(mutex);
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  }
  ~Released() {
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    __tsan_acquire(mutex);
  }
  Mutex* mutex;
};

}  // namespace

void WrapLock(Mutex* mutex) asm("__wrap__ZN4absl7debian35Mutex4LockEv");
void WrapUnlock(Mutex* mutex) asm("__wrap__ZN4absl7debian35Mutex6UnlockEv");
void WrapAwait(Mutex* mutex, const Condition& condition) asm(
    "__wrap__ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE");
bool WrapAwaitFor(Mutex* mutex, const Condition& condition, Duration timeout) asm(
    "__wrap__ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE");
bool WrapAwaitUntil(Mutex* mutex, const Condition& condition, Time deadline) asm(
    "__wrap__ZN4absl7debian35Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE");
void WrapWait(CondVar* cv, Mutex* mutex) asm("__wrap__ZN4absl7debian37CondVar4WaitEPNS0_5MutexE");
bool WrapWaitFor(CondVar* cv, Mutex* mutex, Duration timeout) asm(
    "__wrap__ZN4absl7debian37CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
bool WrapWaitUntil(CondVar* cv, Mutex* mutex, Time deadline) asm(
    "__wrap__ZN4absl7debian37CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");

void WrapLock(Mutex* mutex) {
  RealLock(mutex);
  __tsan_acquire(mutex);
}

void WrapUnlock(Mutex* mutex) {
  __tsan_release(mutex);
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  RealUnlock(mutex);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}

void WrapAwait(Mutex* mutex, const Condition& condition) {
  const Released released(mutex);
  RealAwait(mutex, condition);
}

bool WrapAwaitFor(Mutex* mutex, const Condition& condition, Duration timeout) {
  const Released released(mutex);
  return RealAwaitFor(mutex, condition, timeout);
}

bool WrapAwaitUntil(Mutex* mutex, const Condition& condition, Time deadline) {
  const Released released(mutex);
  return RealAwaitUntil(mutex, condition, deadline);
}

void WrapWait(CondVar* cv, Mutex* mutex) {
  const Released released(mutex);
  RealWait(cv, mutex);
}

bool WrapWaitFor(CondVar* cv, Mutex* mutex, Duration timeout) {
  const Released released(mutex);
  return RealWaitFor(cv, mutex, timeout);
}

bool WrapWaitUntil(CondVar* cv, Mutex* mutex, Time deadline) {
  const Released released(mutex);
  return RealWaitUntil(cv, mutex, deadline);
}
