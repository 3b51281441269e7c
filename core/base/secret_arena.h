// One place for all keys of a process that serves with them for long.
#pragma once

#include <cstddef>
#include <memory>

#include "core/base/secret_heap.h"
#include "core/base/status.h"

namespace kapsule {

inline constexpr size_t kSecretArenaBytes = 8 << 20;

// Memory for secrets, never in swap or a core dump. Where the kernel has
// memfd_secret(2), no other process reads it either, root's /proc/PID/mem
// included, and no kernel code by accident. A forked child shares it then, and
// finds zeros otherwise. Only pages that are used take memory.
class SecretArena {
 public:
  // `size` is rounded up to pages. CAP_IPC_LOCK lifts the limit, and may be
  // dropped afterwards.
  //   ResourceExhausted  RLIMIT_MEMLOCK does not allow it, or no address space
  static absl::StatusOr<std::unique_ptr<SecretArena>> Make(size_t size);
  ~SecretArena();
  SecretArena(const SecretArena&) = delete;
  SecretArena& operator=(const SecretArena&) = delete;

  SecretHeap& heap() { return heap_; }
  bool hidden() const { return hidden_; }  // from root: memfd_secret

 private:
  SecretArena(MutableByteSpan memory, bool hidden)
      : memory_(memory), hidden_(hidden), heap_(memory) {}
  const MutableByteSpan memory_;
  const bool hidden_;
  SecretHeap heap_;
};

// From now on everything that OpenSSL allocates, and every new Secret, lies in
// one arena of `size` bytes, which lives as long as the process; OpenSSL is
// initialised there, its configuration read. Says in the log where the kernel
// has no memfd_secret. A full arena fails the call that needs more: OpenSSL's
// returns an error, Secret throws std::bad_alloc.
//
// Once, before any other use of OpenSSL and any second thread. A program that
// does not call it has OpenSSL's keys on the heap, and Secrets on pages of
// their own. After an error the process must end.
//   ResourceExhausted   as SecretArena::Make()
//   FailedPrecondition  OpenSSL was used before, or this is the second call
absl::Status InstallSecretArena(size_t size = kSecretArenaBytes);

// Null before InstallSecretArena(). Thread-safe.
SecretArena* InstalledSecretArena();

}  // namespace kapsule
