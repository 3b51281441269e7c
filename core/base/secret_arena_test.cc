// Each test installs an arena in a process of its own: OpenSSL takes one only
// before its first allocation.
#include "core/base/secret_arena.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <functional>

#include "core/base/file.h"
#include "core/base/secret.h"

namespace kapsule {
namespace {

// The body's EXPECTs count; what it prints is seen.
void InAProcess(const std::function<void()>& body) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    body();
    _exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

bool InArena(const void* piece) {
  SecretArena* const arena = InstalledSecretArena();
  void* const probe = arena->heap().Allocate(1);
  const auto distance = static_cast<std::byte*>(probe) - static_cast<const std::byte*>(piece);
  arena->heap().Free(probe);
  return static_cast<size_t>(std::abs(distance)) < arena->heap().size();
}

// Through /proc, as root's tools would.
ssize_t ReadMemory(const void* at, void* out, size_t size) {
  const UniqueFd memory(open("/proc/self/mem", O_RDONLY | O_CLOEXEC));
  return pread(memory.get(), out, size, static_cast<off_t>(reinterpret_cast<uintptr_t>(at)));
}

void ForbidMemfdSecret() {
  scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
  ASSERT_EQ(seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), 447, 0), 0);
  ASSERT_EQ(seccomp_load(filter), 0);
}

// Without the capability that lifts the limit.
void LimitLockedMemory(rlim_t bytes) {
  const rlimit limit{bytes, bytes};
  ASSERT_EQ(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
  if (geteuid() == 0) {
    ASSERT_EQ(setresuid(65534, 65534, 65534), 0);
    ASSERT_EQ(prctl(PR_SET_DUMPABLE, 1), 0);
  }
}

std::string EncryptOnce(EVP_CIPHER_CTX* context) {
  const unsigned char key[32] = {1}, iv[16] = {2};
  unsigned char out[64];
  int n = 0;
  if (context == nullptr ||
      EVP_EncryptInit_ex2(context, EVP_aes_256_ctr(), key, iv, nullptr) != 1 ||
      EVP_EncryptUpdate(context, out, &n, out, sizeof(out)) != 1)
    return "refused";
  return n == sizeof(out) ? "" : "short";
}

TEST(SecretArenaTest, SecretsAndOpensslLiveInIt) {
  InAProcess([] {
    Secret before = Secret::CopyOf("from before");
    ASSERT_TRUE(InstallSecretArena().ok());
    const size_t started = InstalledSecretArena()->heap().used();
    EXPECT_GT(started, 0u);
    EXPECT_FALSE(InArena(before.bytes().data()));
    const std::byte* was_at;
    {
      const Secret secret = Secret::CopyOf("key bytes");
      was_at = secret.bytes().data();
      EXPECT_TRUE(InArena(was_at));
      EXPECT_GT(InstalledSecretArena()->heap().used(), started);
      Secret moved = Secret::CopyOf("other");
      moved = std::move(before);
      EXPECT_EQ(moved.text(), "from before");
      EXPECT_EQ(before.text(), "other");
    }
    EXPECT_EQ(*was_at, std::byte{0});
    EVP_CIPHER_CTX* const context = EVP_CIPHER_CTX_new();
    EXPECT_TRUE(InArena(context));
    EXPECT_EQ(EncryptOnce(context), "");
    EVP_CIPHER_CTX_free(context);
  });
}

TEST(SecretArenaTest, RootCannotReadIt) {
  InAProcess([] {
    ASSERT_TRUE(InstallSecretArena().ok());
    ASSERT_TRUE(InstalledSecretArena()->hidden()) << "the kernel has no memfd_secret";
    const Secret secret = Secret::CopyOf("key bytes");
    const std::string readable = "no secret";
    char read[9];
    EXPECT_EQ(ReadMemory(readable.data(), read, sizeof(read)), 9);
    EXPECT_EQ(ReadMemory(secret.bytes().data(), read, sizeof(read)), -1);
  });
}

TEST(SecretArenaTest, LockedMemoryServesWhereTheKernelHasNoMemfdSecret) {
  InAProcess([] {
    ForbidMemfdSecret();
    ::testing::internal::CaptureStdout();
    ASSERT_TRUE(InstallSecretArena().ok());
    EXPECT_NE(::testing::internal::GetCapturedStdout().find("memfd_secret"), std::string::npos);
    EXPECT_FALSE(InstalledSecretArena()->hidden());
    const Secret secret = Secret::CopyOf("key bytes");
    EVP_CIPHER_CTX* const context = EVP_CIPHER_CTX_new();
    EXPECT_EQ(EncryptOnce(context), "");
    std::ifstream smaps("/proc/self/smaps");  // the arena: locked, not dumped, wiped on fork
    bool found = false;
    for (std::string line; std::getline(smaps, line);)
      found |= line.starts_with("VmFlags:") && line.find(" lo") != std::string::npos &&
               line.find(" dd") != std::string::npos && line.find(" wf") != std::string::npos;
    EXPECT_TRUE(found);
    char read[9];
    EXPECT_EQ(ReadMemory(secret.bytes().data(), read, sizeof(read)), 9);  // hence the warning
  });
}

TEST(SecretArenaTest, ALimitThatIsTooSmallIsNamed) {
  InAProcess([] {
    LimitLockedMemory(64 << 10);
    const absl::Status status = InstallSecretArena(1 << 20);
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_NE(Message(status).find("RLIMIT_MEMLOCK is 64 KiB"), std::string::npos) << status;
    EXPECT_NE(Message(status).find("LimitMEMLOCK="), std::string::npos) << status;
    EXPECT_EQ(InstalledSecretArena(), nullptr);
  });
  InAProcess([] {
    LimitLockedMemory(2 << 20);
    EXPECT_TRUE(InstallSecretArena(1 << 20).ok());
  });
}

TEST(SecretArenaTest, OnlyTouchedPagesTakeMemory) {
  for (const bool fallback : {false, true})
    InAProcess([&] {
      if (fallback) ForbidMemfdSecret();
      ASSERT_TRUE(InstallSecretArena(64 << 20).ok());
      std::ifstream statm("/proc/self/statm");
      size_t total = 0, resident = 0;
      statm >> total >> resident;
      EXPECT_LT(resident * SecretHeap::kPage, size_t{48} << 20);
    });
}

TEST(SecretArenaTest, AFullArenaIsAnErrorAndNoEnd) {
  InAProcess([] {
    ASSERT_TRUE(InstallSecretArena(512 << 10).ok());
    EXPECT_EQ(EncryptOnce(EVP_CIPHER_CTX_new()), "");
    SecretHeap& heap = InstalledSecretArena()->heap();
    std::vector<void*> pieces;
    for (const size_t size : {4096, 64, 16})
      while (void* const piece = heap.Allocate(size)) pieces.push_back(piece);
    EXPECT_THROW(Secret(64), std::bad_alloc);
    EXPECT_EQ(EncryptOnce(EVP_CIPHER_CTX_new()), "refused");
    ERR_clear_error();
    for (void* const piece : pieces) heap.Free(piece);
    EXPECT_EQ(Secret(64).size(), 64u);
    EXPECT_EQ(EncryptOnce(EVP_CIPHER_CTX_new()), "");
  });
}

TEST(SecretArenaTest, ItComesFirstAndOnce) {
  InAProcess([] {
    EVP_CIPHER_CTX_free(EVP_CIPHER_CTX_new());
    EXPECT_EQ(InstallSecretArena().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(InstalledSecretArena(), nullptr);
    EXPECT_EQ(Secret::CopyOf("on its own page").size(), 15u);
  });
  InAProcess([] {
    ASSERT_TRUE(InstallSecretArena().ok());
    EXPECT_EQ(InstallSecretArena().code(), absl::StatusCode::kFailedPrecondition);
  });
}

}  // namespace
}  // namespace kapsule
