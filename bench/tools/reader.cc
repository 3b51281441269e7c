// Reads files in one way and tells how long it took, as a line of JSON: what
// bench/run measures with.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kPiece = 1 << 20;

constexpr char kUsage[] = R"(usage: reader [OPTIONS] MODE FILE…

Modes:  read    pread of 1 MiB after the other
        scan    mmap, one byte of each page
        sum     mmap, every byte
        random  pread of 4 KiB at pages in a random order

  --readers N    this many threads; a FILE is cut in N parts, of several each
                 thread reads its share
  --cold         drop the FILEs from the page cache first; fails where that fails
  --drop PATH    drop this one too; may be given again
  --count N      how many pages random reads (default 2000)
  --seed N       of random
)";

struct Options {
  std::string mode;
  std::vector<std::string> files, drop;
  unsigned readers = 1;
  bool cold = false;
  size_t count = 2000, seed = 1;
};

struct Slice {
  int fd;
  size_t begin, end;
};

using Clock = std::chrono::steady_clock;

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "reader: %s: %s\n", what.c_str(), std::strerror(errno));
  std::_Exit(1);
}

class File {
 public:
  explicit File(const std::string& path) : path_(path), fd_(open(path.c_str(), O_RDONLY)) {
    struct stat st;
    if (fd_ < 0 || fstat(fd_, &st) != 0) Fail(path);
    size_ = static_cast<size_t>(st.st_size);
  }
  ~File() { close(fd_); }
  File(const File&) = delete;

  int fd() const { return fd_; }
  size_t size() const { return size_; }

  void Drop() const {
    if (posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED) != 0) Fail("drop " + path_);
  }

  // Whether more than a page in a hundred is in the page cache. False where all is, too:
  // so the kernel answers who may not know, which is everybody where the file's owner has
  // no number.
  bool IsWarm() const {
    if (size_ == 0) return false;
    void* map = mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd_, 0);
    std::vector<unsigned char> pages((size_ + kPage - 1) / kPage);
    if (map == MAP_FAILED || mincore(map, size_, pages.data()) != 0) Fail("mincore " + path_);
    munmap(map, size_);
    const auto count = std::count_if(pages.begin(), pages.end(), [](int p) { return p & 1; });
    const size_t resident = static_cast<size_t>(count);
    return resident < pages.size() && resident * 100 > pages.size();
  }

 private:
  const std::string path_;
  const int fd_;
  size_t size_;
};

// Results go here, so that no compiler leaves the reading out.
std::atomic<uint64_t> sink;

void Read(const Slice& slice) {
  const std::unique_ptr<char[]> buffer(new char[kPiece]());
  for (size_t at = slice.begin; at < slice.end;) {
    const size_t want = std::min(kPiece, slice.end - at);
    const ssize_t n = pread(slice.fd, buffer.get(), want, static_cast<off_t>(at));
    if (n <= 0) Fail("pread");
    at += static_cast<size_t>(n);
  }
  sink += static_cast<unsigned char>(buffer[0]);
}

template <typename Touch>
void Map(const Slice& slice, Touch touch) {
  const size_t length = slice.end - slice.begin;
  void* map =
      mmap(nullptr, length, PROT_READ, MAP_SHARED, slice.fd, static_cast<off_t>(slice.begin));
  if (map == MAP_FAILED) Fail("mmap");
  sink += touch(static_cast<const char*>(map), length);
  munmap(map, length);
}

uint64_t TouchPages(const char* bytes, size_t length) {
  uint64_t sum = 0;
  for (size_t i = 0; i < length; i += kPage) sum += static_cast<const volatile char*>(bytes)[i];
  return sum;
}

uint64_t SumBytes(const char* bytes, size_t length) {
  uint64_t sum = 0, word;
  for (size_t i = 0; i + sizeof(word) <= length; i += sizeof(word)) {
    std::memcpy(&word, bytes + i, sizeof(word));
    sum += word;
  }
  return sum;
}

// Latencies in microseconds, sorted.
std::vector<double> ReadRandomly(const File& file, const Options& options) {
  std::mt19937_64 random(options.seed);
  const size_t pages = file.size() / kPage;
  std::vector<double> latencies;
  char buffer[kPage];
  for (size_t i = 0; i < options.count; ++i) {
    const off_t at = static_cast<off_t>(random() % pages * kPage);
    const Clock::time_point start = Clock::now();
    if (pread(file.fd(), buffer, kPage, at) != static_cast<ssize_t>(kPage)) Fail("pread");
    latencies.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
  std::sort(latencies.begin(), latencies.end());
  return latencies;
}

using Files = std::vector<std::unique_ptr<File>>;

// What each reader reads: a part of the one file, or every so manieth file.
std::vector<std::vector<Slice>> Share(const Files& files, unsigned readers) {
  std::vector<std::vector<Slice>> shares(readers);
  if (files.size() == 1) {
    const size_t size = files[0]->size();
    const size_t part = (size / readers + kPiece - 1) / kPiece * kPiece;
    for (unsigned i = 0; i < readers && i * part < size; ++i)
      shares[i].push_back({files[0]->fd(), i * part, std::min(size, (i + 1) * part)});
  } else {
    for (size_t i = 0; i < files.size(); ++i)
      shares[i % readers].push_back({files[i]->fd(), 0, files[i]->size()});
  }
  return shares;
}

void ReadAll(const Files& files, const Options& options) {
  const auto one = [&options](const Slice& slice) {
    if (options.mode == "read") Read(slice);
    if (options.mode == "scan") Map(slice, TouchPages);
    if (options.mode == "sum") Map(slice, SumBytes);
  };
  std::vector<std::thread> threads;
  for (const std::vector<Slice>& share : Share(files, options.readers)) {
    const auto work = [&one, share] { std::for_each(share.begin(), share.end(), one); };
    if (options.readers == 1)
      work();
    else
      threads.emplace_back(work);
  }
  for (std::thread& thread : threads) thread.join();
}

double CpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

Options Parse(int argc, char** argv) {
  Options options;
  std::vector<std::string> words;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto value = [&]() -> std::string {
      if (++i < argc) return argv[i];
      std::fputs(kUsage, stderr);
      std::exit(2);
    };
    if (word == "--cold")
      options.cold = true;
    else if (word == "--drop")
      options.drop.push_back(value());
    else if (word == "--readers")
      options.readers = static_cast<unsigned>(std::stoul(value()));
    else if (word == "--count")
      options.count = std::stoul(value());
    else if (word == "--seed")
      options.seed = std::stoul(value());
    else
      words.push_back(word);
  }
  const char* const modes[] = {"read", "scan", "sum", "random"};
  if (words.size() < 2 || options.readers == 0 ||
      std::find(std::begin(modes), std::end(modes), words[0]) == std::end(modes)) {
    std::fputs(kUsage, stderr);
    std::exit(2);
  }
  options.mode = words[0];
  options.files.assign(words.begin() + 1, words.end());
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = Parse(argc, argv);
  Files files;
  size_t bytes = 0;
  for (const std::string& path : options.files) {
    files.push_back(std::make_unique<File>(path));
    bytes += files.back()->size();
  }
  for (const std::string& path : options.drop) File(path).Drop();
  for (const auto& file : files) {
    if (options.cold) file->Drop();
    if (options.cold && file->IsWarm()) {
      std::fprintf(stderr, "reader: %s stays in the page cache\n", options.files[0].c_str());
      return 1;
    }
  }
  const double cpu = CpuSeconds();
  const Clock::time_point start = Clock::now();
  std::vector<double> latencies;
  if (options.mode == "random") {
    latencies = ReadRandomly(*files[0], options);
    bytes = options.count * kPage;
  } else {
    ReadAll(files, options);
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  std::printf("{\"bytes\":%zu,\"seconds\":%.6f,\"cpu\":%.6f", bytes, seconds, CpuSeconds() - cpu);
  if (!latencies.empty())
    std::printf(",\"p50\":%.2f,\"p99\":%.2f", latencies[latencies.size() / 2],
                latencies[latencies.size() * 99 / 100]);
  std::printf("}\n");
  return 0;
}
