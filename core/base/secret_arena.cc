#include "core/base/secret_arena.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "core/base/file.h"
#include "core/base/log.h"

namespace kapsule {
namespace {

constexpr long kSysMemfdSecret = 447;  // the same on every architecture

std::string TextOfLimit(rlim_t bytes) {
  return bytes == RLIM_INFINITY ? "unlimited" : fmt::format("{} KiB", bytes / 1024);
}

absl::StatusOr<MutableByteSpan> MapHidden(size_t size) {
  const UniqueFd fd(static_cast<int>(syscall(kSysMemfdSecret, O_CLOEXEC)));
  if (!fd.valid()) return ErrnoStatus(errno, "memfd_secret");
  if (ftruncate(fd.get(), static_cast<off_t>(size)) != 0)
    return ErrnoStatus(errno, "memfd_secret: ftruncate");
  void* const pages = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (pages == MAP_FAILED) return ErrnoStatus(errno, "memfd_secret: mmap");
  return MutableByteSpan(static_cast<std::byte*>(pages), size);
}

absl::StatusOr<MutableByteSpan> MapLocked(size_t size) {
  void* const pages =
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) return ErrnoStatus(errno, fmt::format("map {} bytes for keys", size));
  if (mlock2(pages, size, MLOCK_ONFAULT) == 0 && madvise(pages, size, MADV_DONTDUMP) == 0 &&
      madvise(pages, size, MADV_WIPEONFORK) == 0)
    return MutableByteSpan(static_cast<std::byte*>(pages), size);
  const int error = errno;
  munmap(pages, size);
  rlimit limit{};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  return ResourceExhausted(
      "lock {} KiB of memory for keys: {}; RLIMIT_MEMLOCK is {}: raise it (LimitMEMLOCK= in a "
      "unit of systemd, ulimit -l in a shell) or start with CAP_IPC_LOCK",
      size / 1024, strerror(error), TextOfLimit(limit.rlim_cur));
}

std::atomic<SecretArena*> installed = nullptr;

void* OpensslAllocate(size_t size, const char*, int) {
  return InstalledSecretArena()->heap().Allocate(size);
}
void* OpensslResize(void* piece, size_t size, const char*, int) {
  return InstalledSecretArena()->heap().Resize(piece, size);
}
void OpensslFree(void* piece, const char*, int) { InstalledSecretArena()->heap().Free(piece); }

}  // namespace

absl::StatusOr<std::unique_ptr<SecretArena>> SecretArena::Make(size_t size) {
  size = AlignUp(size, SecretHeap::kPage);
  absl::StatusOr<MutableByteSpan> memory = MapHidden(size);
  const bool hidden = memory.ok();
  if (!hidden) {
    const std::string why = Message(memory.status());
    ASSIGN_OR_RETURN(memory, MapLocked(size));
    log::warn("{}: keys are in locked memory instead, which root can read", why);
  }
  return std::unique_ptr<SecretArena>(new SecretArena(*memory, hidden));
}

SecretArena::~SecretArena() {
  OPENSSL_cleanse(memory_.data(), memory_.size());
  munmap(memory_.data(), memory_.size());
}

absl::Status InstallSecretArena(size_t size) {
  if (InstalledSecretArena() != nullptr)
    return FailedPrecondition("the process has its memory for keys already");
  ASSIGN_OR_RETURN(std::unique_ptr<SecretArena> arena, SecretArena::Make(size));
  // Before the first allocation, which OpenSSL itself insists on.
  if (CRYPTO_set_mem_functions(OpensslAllocate, OpensslResize, OpensslFree) != 1)
    return FailedPrecondition("OpenSSL has allocated memory before its arena was there");
  installed = arena.release();
  if (OPENSSL_init_crypto(OPENSSL_INIT_LOAD_CONFIG, nullptr) != 1)
    return FailedPrecondition("OpenSSL does not start; look at its configuration (openssl.cnf)");
  return absl::OkStatus();
}

SecretArena* InstalledSecretArena() { return installed; }

}  // namespace kapsule
