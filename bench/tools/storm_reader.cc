// Reads a file over and over in three ways at once and compares each byte with a
// reference, while others kill what serves it: pread, mmap, and open + stat +
// read. Tells of each step that took long, and at the end what went wrong.
//
// Usage: storm_reader FILE REFERENCE      until SIGTERM
//
// Lines of JSON: {"reader":…,"start":ns,"end":ns} for each step of more than
// kLongMs, by CLOCK_MONOTONIC; last {"bytes":N,"errors":N,"wrong":N}.
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr size_t kStep = 1 << 20;
constexpr size_t kWindow = 8 * kStep;  // dropped from the page cache at once
constexpr int64_t kLongMs = 5;

std::atomic<bool> stopping = false;
std::atomic<uint64_t> bytes_read = 0, errors = 0, wrong = 0;

[[noreturn]] void Fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

int64_t Now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1'000'000'000 + time.tv_nsec;
}

// A bad page is an error of this read, not the end of the process.
thread_local sigjmp_buf on_bus_error;
thread_local volatile sig_atomic_t expects_bus_error = 0;

void OnBusError(int) {
  if (expects_bus_error == 0) _exit(1);
  siglongjmp(on_bus_error, 1);
}

// memcmp that survives SIGBUS; false after one.
bool Compare(const char* mapped, const char* expected, size_t size, bool& equal) {
  if (sigsetjmp(on_bus_error, 1) != 0) {
    expects_bus_error = 0;
    return false;
  }
  expects_bus_error = 1;
  equal = std::memcmp(mapped, expected, size) == 0;
  expects_bus_error = 0;
  return true;
}

class Reader {
 public:
  Reader(const char* name, const char* path, const char* reference, size_t size)
      : name_(name), path_(path), reference_(reference), size_(size), buffer_(new char[kStep]) {}
  virtual ~Reader() = default;

  void Run(size_t begin) {
    size_t at = begin / kWindow * kWindow;
    while (!stopping) {
      const size_t end = std::min(at + kWindow, size_);
      Drop(at, end - at);
      for (; at < end && !stopping; at += std::min(kStep, end - at))
        Step(at, std::min(kStep, end - at));
      if (at >= size_) at = 0;
    }
  }

 protected:
  // False with an error; else `equal` says whether the bytes are right.
  virtual bool Check(size_t at, size_t size, bool& equal) = 0;

  bool CheckByRead(int fd, size_t at, size_t size, bool& equal) {
    const ssize_t n = pread(fd, buffer_.get(), size, static_cast<off_t>(at));
    equal = n >= 0 && std::memcmp(buffer_.get(), reference_ + at, size) == 0;
    return n == static_cast<ssize_t>(size);
  }

  const char* const name_;
  const char* const path_;
  const char* const reference_;
  const size_t size_;

 private:
  void Drop(size_t at, size_t size) const {
    const int fd = open(path_, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    posix_fadvise(fd, static_cast<off_t>(at), static_cast<off_t>(size), POSIX_FADV_DONTNEED);
    close(fd);
  }

  void Step(size_t at, size_t size) {
    bool equal = true;
    errno = 0;
    const int64_t start = Now();
    const bool done = Check(at, size, equal);
    const int64_t end = Now();
    if (!done) {
      ++errors;
      std::fprintf(stderr, "%s at %zu: %s\n", name_, at,
                   errno == 0 ? "short read" : std::strerror(errno));
      usleep(10'000);
    } else if (!equal) {
      ++wrong;
      std::fprintf(stderr, "%s at %zu: wrong bytes\n", name_, at);
    }
    bytes_read += size;
    if (end - start > kLongMs * 1'000'000)
      std::printf("{\"reader\":\"%s\",\"start\":%ld,\"end\":%ld}\n", name_,
                  static_cast<long>(start), static_cast<long>(end));
  }

  const std::unique_ptr<char[]> buffer_;
};

class ByRead final : public Reader {
 public:
  ByRead(const char* path, const char* reference, size_t size)
      : Reader("read", path, reference, size), fd_(open(path, O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0) Fail(path);
  }

 private:
  bool Check(size_t at, size_t size, bool& equal) override {
    return CheckByRead(fd_, at, size, equal);
  }
  const int fd_;
};

// Maps each step anew: mapped pages are not dropped.
class ByMap final : public Reader {
 public:
  ByMap(const char* path, const char* reference, size_t size)
      : Reader("mmap", path, reference, size), fd_(open(path, O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0) Fail(path);
  }

 private:
  bool Check(size_t at, size_t size, bool& equal) override {
    void* map = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd_, static_cast<off_t>(at));
    if (map == MAP_FAILED) return false;
    const bool done = Compare(static_cast<const char*>(map), reference_ + at, size, equal);
    munmap(map, size);
    return done;
  }
  const int fd_;
};

class ByOpen final : public Reader {
 public:
  ByOpen(const char* path, const char* reference, size_t size)
      : Reader("open", path, reference, size) {}

 private:
  bool Check(size_t at, size_t size, bool& equal) override {
    const int fd = open(path_, O_RDONLY | O_CLOEXEC);
    struct stat st;
    const bool done = fd >= 0 && fstat(fd, &st) == 0 && static_cast<size_t>(st.st_size) == size_ &&
                      CheckByRead(fd, at, size, equal);
    if (fd >= 0) close(fd);
    return done;
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fputs("usage: storm_reader FILE REFERENCE\n", stderr);
    return 2;
  }
  struct stat st;
  const int fd = open(argv[2], O_RDONLY | O_CLOEXEC);
  if (fd < 0 || fstat(fd, &st) != 0) Fail(argv[2]);
  const size_t size = static_cast<size_t>(st.st_size);
  void* reference = mmap(nullptr, size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (reference == MAP_FAILED) Fail("mmap of the reference");
  setvbuf(stdout, nullptr, _IOLBF, 0);
  signal(SIGBUS, OnBusError);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigprocmask(SIG_BLOCK, &signals, nullptr);

  const char* const expected = static_cast<const char*>(reference);
  std::vector<std::unique_ptr<Reader>> readers;
  readers.push_back(std::make_unique<ByRead>(argv[1], expected, size));
  readers.push_back(std::make_unique<ByMap>(argv[1], expected, size));
  readers.push_back(std::make_unique<ByOpen>(argv[1], expected, size));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < readers.size(); ++i)
    threads.emplace_back([&readers, i, size] { readers[i]->Run(size / readers.size() * i); });
  int signal = 0;
  sigwait(&signals, &signal);
  stopping = true;
  for (std::thread& thread : threads) thread.join();
  std::printf("{\"bytes\":%lu,\"errors\":%lu,\"wrong\":%lu}\n",
              static_cast<unsigned long>(bytes_read), static_cast<unsigned long>(errors),
              static_cast<unsigned long>(wrong));
  return errors + wrong == 0 ? 0 : 1;
}
