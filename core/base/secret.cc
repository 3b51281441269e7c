#include "core/base/secret.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <utility>

#include "core/base/secret_arena.h"

namespace kapsule {

// mapped_ is 0 for bytes in the arena.
Secret::Secret(size_t size) : size_(size) {
  if (size == 0) return;
  if (SecretArena* const arena = InstalledSecretArena(); arena != nullptr) {
    data_ = static_cast<std::byte*>(arena->heap().Allocate(size));
    if (data_ == nullptr) throw std::bad_alloc();
    return;
  }
  mapped_ = AlignUp(size, static_cast<uint64_t>(sysconf(_SC_PAGESIZE)));
  void* pages = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  mlock(pages, mapped_);  // a lower limit leaves it pageable, which is no error
  madvise(pages, mapped_, MADV_DONTDUMP);
  madvise(pages, mapped_, MADV_WIPEONFORK);
  data_ = static_cast<std::byte*>(pages);
}

Secret::Secret(Secret&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      mapped_(std::exchange(other.mapped_, 0)) {}

Secret& Secret::operator=(Secret&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

Secret::~Secret() {
  if (data_ == nullptr) return;
  if (mapped_ == 0) {
    InstalledSecretArena()->heap().Free(data_);
    return;
  }
  OPENSSL_cleanse(data_, mapped_);
  munmap(data_, mapped_);
}

Secret Secret::CopyOf(ByteSpan bytes) {
  Secret copy(bytes.size());
  if (!bytes.empty()) std::memcpy(copy.data_, bytes.data(), bytes.size());
  return copy;
}

void Secret::Truncate(size_t size) {
  if (size >= size_) return;
  OPENSSL_cleanse(data_ + size, size_ - size);
  size_ = size;
}

bool Secret::Equals(ByteSpan other) const {
  if (other.size() != size_) return false;
  return size_ == 0 || CRYPTO_memcmp(data_, other.data(), size_) == 0;
}

absl::StatusOr<Secret> DecodeBase64ToSecret(std::string_view text, bool url) {
  Secret out(text.size() / 4 * 3 + 3);
  ASSIGN_OR_RETURN(const size_t n, DecodeBase64Into(text, url, out.bytes().data()));
  out.Truncate(n);
  return out;
}

absl::Status FillRandom(MutableByteSpan out) {
  if (RAND_bytes(reinterpret_cast<unsigned char*>(out.data()), static_cast<int>(out.size())) != 1)
    return Internal("the random number generator failed");
  return absl::OkStatus();
}

void Cleanse(void* data, size_t size) { OPENSSL_cleanse(data, size); }

}  // namespace kapsule
