// Reads a file of a container again and again and compares each byte with the
// source, while the daemons behind it are killed. A static program, so that it
// runs in any image.
//
// Usage: verifying_reader read|mmap|open FILE SOURCE STOP
//   read  read(2) of the whole file   mmap  page faults of the whole file
//   open  open, stat, and reads of odd pieces
// Ends when the file STOP exists. Prints for each wait of more than 3 ms
//   slow BEGIN_US LENGTH_US           (CLOCK_MONOTONIC)
// for each error or wrong byte a line that begins with "bad", and at the end
//   end PASSES BYTES BAD
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr size_t kPiece = 256 << 10;
constexpr int64_t kSlowUs = 3000;
constexpr int kMaxBad = 50;  // lines of which more say nothing new

uint64_t passes = 0, bytes = 0, bad = 0;
sigjmp_buf fault;

int64_t NowUs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000 + now.tv_nsec / 1000;
}

[[noreturn]] void Fail(const char* what) {
  std::printf("bad setup %s: %s\n", what, std::strerror(errno));
  std::exit(1);
}

void Bad(const char* what, size_t offset) {
  const int error = errno;
  if (++bad <= kMaxBad) std::printf("bad %s at %zu: %s\n", what, offset, std::strerror(error));
}

// Says how long a call took that a reader waited in.
class Timed {
 public:
  ~Timed() {
    const int64_t length = NowUs() - begin_;
    if (length > kSlowUs)
      std::printf("slow %lld %lld\n", static_cast<long long>(begin_),
                  static_cast<long long>(length));
  }

 private:
  const int64_t begin_ = NowUs();
};

class Reader {
 public:
  Reader(const char* path, const char* source) : path_(path) {
    const int fd = open(source, O_RDONLY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) Fail(source);
    size_ = static_cast<size_t>(st.st_size);
    void* const map = mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) Fail("mmap of the source");
    source_ = static_cast<const char*>(map);
    close(fd);
    buffer_.resize(kPiece);
  }

  void Read() {
    const int fd = Open();
    if (fd < 0) return;
    for (size_t at = 0; at < size_; at += kPiece) Compare(fd, at, std::min(kPiece, size_ - at));
    Close(fd);
  }

  void Pieces() {
    for (int i = 0; i < 64; ++i) {
      const int fd = Open();
      if (fd < 0) return;
      const size_t length = 1 + random_() % 70'000;
      for (int piece = 0; piece < 2; ++piece) {
        const size_t at = random_() % size_;
        Compare(fd, at, std::min(length, size_ - at));
      }
      Close(fd);
    }
  }

  void Map() {
    const int fd = Open();
    if (fd < 0) return;
    void* const map = mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) Fail("mmap");
    madvise(map, size_, MADV_RANDOM);  // many waits instead of a few
    for (size_t at = 0; at < size_; at += kPiece / 4)
      CompareMapped(static_cast<const char*>(map), at, std::min(kPiece / 4, size_ - at));
    munmap(map, size_);
    Close(fd);
  }

 private:
  int Open() {
    const Timed timed;
    struct stat by_name, by_fd;
    const int fd = open(path_, O_RDONLY);
    if (fd < 0 || stat(path_, &by_name) != 0 || fstat(fd, &by_fd) != 0) {
      Bad("open", 0);
    } else if (static_cast<size_t>(by_fd.st_size) != size_ || by_name.st_ino != by_fd.st_ino) {
      Bad("stat", 0);
    } else {
      return fd;
    }
    if (fd >= 0) close(fd);
    usleep(100'000);
    return -1;
  }

  // What was read is forgotten, so that the next pass asks the daemons again.
  void Close(int fd) {
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
    ++passes;
  }

  void Compare(int fd, size_t at, size_t length) {
    const Timed timed;
    const ssize_t n = pread(fd, buffer_.data(), length, static_cast<off_t>(at));
    if (n != static_cast<ssize_t>(length)) return Bad("read", at);
    Check(buffer_.data(), at, length);
  }

  void CompareMapped(const char* map, size_t at, size_t length) {
    const Timed timed;
    if (sigsetjmp(fault, 1) != 0) return Bad("SIGBUS", at);
    Check(map + at, at, length);
  }

  void Check(const char* got, size_t at, size_t length) {
    errno = 0;
    if (std::memcmp(got, source_ + at, length) != 0) return Bad("bytes differ", at);
    bytes += length;
  }

  const char* const path_;
  const char* source_ = nullptr;
  size_t size_ = 0;
  std::vector<char> buffer_;
  std::mt19937 random_{static_cast<uint32_t>(getpid())};
};

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc == 5 ? argv[1] : "";
  if (mode != "read" && mode != "mmap" && mode != "open") {
    std::fprintf(stderr, "usage: verifying_reader read|mmap|open FILE SOURCE STOP\n");
    return 2;
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  std::signal(SIGBUS, [](int) { siglongjmp(fault, 1); });
  Reader reader(argv[2], argv[3]);
  while (access(argv[4], F_OK) != 0) {
    if (mode == "read") reader.Read();
    if (mode == "mmap") reader.Map();
    if (mode == "open") reader.Pieces();
  }
  std::printf("end %llu %llu %llu\n", static_cast<unsigned long long>(passes),
              static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(bad));
  return bad == 0 ? 0 : 1;
}
