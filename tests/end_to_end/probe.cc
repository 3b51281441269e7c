// What a container does to a model file: reads it in every way and tries to
// change it. A static program, so that it runs in any image.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utime.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

[[noreturn]] void Fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

struct File {
  explicit File(const char* path) : fd(open(path, O_RDONLY)) {
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) Fail(path);
    size = static_cast<size_t>(st.st_size);
  }
  int fd;
  size_t size;
};

void Write(const char* bytes, size_t size) {
  if (std::fwrite(bytes, 1, size, stdout) != size) Fail("write");
}

// The whole file by mmap.
int Map(const char* path) {
  const File file(path);
  void* map = mmap(nullptr, file.size, PROT_READ, MAP_SHARED, file.fd, 0);
  if (map == MAP_FAILED) Fail("mmap");
  // Through page faults of this process: write(2) alone would give EFAULT.
  const std::string copy(static_cast<const char*>(map), file.size);
  Write(copy.data(), copy.size());
  return 0;
}

// The whole file by pread of pieces of odd sizes in a random order.
int Pieces(const char* path) {
  const File file(path);
  std::mt19937 random(7);
  std::vector<std::pair<size_t, size_t>> pieces;
  for (size_t at = 0; at < file.size;) {
    const size_t n = std::min<size_t>(1 + random() % 300'000, file.size - at);
    pieces.emplace_back(at, n);
    at += n;
  }
  std::shuffle(pieces.begin(), pieces.end(), random);
  std::string whole(file.size, '\0');
  for (const auto& [at, n] : pieces)
    if (pread(file.fd, whole.data() + at, n, static_cast<off_t>(at)) != static_cast<ssize_t>(n))
      Fail("pread");
  Write(whole.data(), whole.size());
  return 0;
}

// Everything that would change the file or copy it up. Prints what was not
// refused; exit 0 where all was refused.
int Change(const char* path) {
  const std::string other = std::string(path) + ".other";
  struct Attempt {
    const char* name;
    int result;
  };
  const utimbuf times{1, 1};
  const Attempt attempts[] = {
      {"chmod", chmod(path, 0777)},
      {"chown", chown(path, 1, 1)},
      {"touch", utime(path, &times)},
      {"truncate", truncate(path, 0)},
      {"open for writing", open(path, O_WRONLY)},
      {"open to append", open(path, O_RDWR | O_APPEND)},
      {"rename", rename(path, other.c_str())},
      {"link", link(path, other.c_str())},
      {"rm", unlink(path)},
  };
  int allowed = 0;
  for (const Attempt& attempt : attempts) {
    if (attempt.result < 0) continue;
    std::printf("not refused: %s\n", attempt.name);
    ++allowed;
  }
  if (allowed == 0) std::printf("all refused\n");
  return allowed;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string verb = argc == 3 ? argv[1] : "";
  if (verb == "mmap") return Map(argv[2]);
  if (verb == "pieces") return Pieces(argv[2]);
  if (verb == "change") return Change(argv[2]);
  std::fprintf(stderr, "usage: probe mmap|pieces|change FILE\n");
  return 2;
}
