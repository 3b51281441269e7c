// A FUSE server that does the least a server can: its one file, "view", is a
// copy of another, read by pread and written to /dev/fuse. The bound of what any
// server on this path can reach, and the peer that Kapsule is measured against.
//
// Usage: copy_server FILE DIR      mounts at DIR, serves until SIGTERM
#include <fcntl.h>
#include <linux/fuse.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

namespace {

constexpr size_t kMaxRead = 1 << 20;
constexpr size_t kRequest = 32 * 1024;
constexpr int kWorkers = 2;
constexpr uint64_t kFile = 2;  // its node; the root is FUSE_ROOT_ID
constexpr char kName[] = "view";

[[noreturn]] void Fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

class Server {
 public:
  Server(const char* file, const char* dir) : file_(open(file, O_RDONLY)) {
    struct stat st;
    if (file_ < 0 || fstat(file_, &st) != 0) Fail(file);
    size_ = static_cast<uint64_t>(st.st_size);
    device_ = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (device_ < 0) Fail("/dev/fuse");
    const std::string options =
        "fd=" + std::to_string(device_) +
        ",rootmode=40000,user_id=0,group_id=0,max_read=" + std::to_string(kMaxRead);
    if (mount("copy", dir, "fuse.copy", MS_RDONLY | MS_NOSUID | MS_NODEV, options.c_str()) != 0)
      Fail("mount");
  }

  // One worker; returns when the file system is unmounted.
  void Serve() const {
    char* const request = Pages(kRequest);
    char* const body = Pages(kMaxRead);
    for (;;) {
      const ssize_t n = read(device_, request, kRequest);
      if (n < 0 && (errno == EINTR || errno == ENOENT || errno == EAGAIN)) continue;
      if (n < static_cast<ssize_t>(sizeof(fuse_in_header))) return;
      Answer(request, body);
    }
  }

 private:
  static char* Pages(size_t size) {
    void* map = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (map == MAP_FAILED) Fail("mmap");
    return static_cast<char*>(map);
  }

  void Answer(const char* request, char* body) const {
    fuse_in_header in;
    std::memcpy(&in, request, sizeof(in));
    if (in.opcode == FUSE_FORGET || in.opcode == FUSE_BATCH_FORGET || in.opcode == FUSE_INTERRUPT)
      return;
    const ssize_t length = Handle(in, request + sizeof(in), body);
    fuse_out_header out{};
    out.unique = in.unique;
    out.error = length < 0 ? static_cast<int32_t>(length) : 0;
    const size_t size = length < 0 ? 0 : static_cast<size_t>(length);
    out.len = static_cast<uint32_t>(sizeof(out) + size);
    const iovec parts[] = {{&out, sizeof(out)}, {body, size}};
    if (writev(device_, parts, size == 0 ? 1 : 2) < 0 && errno != ENOENT) Fail("reply");
  }

  // The length of the body, or a negative errno.
  ssize_t Handle(const fuse_in_header& in, const char* request, char* body) const {
    switch (in.opcode) {
      case FUSE_INIT: {
        fuse_init_out out{};
        out.major = FUSE_KERNEL_VERSION;
        out.minor = FUSE_KERNEL_MINOR_VERSION;
        out.max_readahead = kMaxRead;
        out.flags = FUSE_ASYNC_READ | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES;
        out.max_background = 64;
        out.congestion_threshold = 48;
        out.max_write = 4096;
        out.time_gran = 1;
        out.max_pages = kMaxRead / 4096;
        return Store(body, out);
      }
      case FUSE_LOOKUP: {
        if (in.nodeid != FUSE_ROOT_ID || std::strcmp(request, kName) != 0) return -ENOENT;
        fuse_entry_out out{};
        out.nodeid = kFile;
        out.entry_valid = out.attr_valid = 3600;
        out.attr = Attributes(kFile);
        return Store(body, out);
      }
      case FUSE_GETATTR: {
        fuse_attr_out out{};
        out.attr_valid = 3600;
        out.attr = Attributes(in.nodeid);
        return Store(body, out);
      }
      case FUSE_OPEN: {
        fuse_open_out out{};
        out.open_flags = FOPEN_KEEP_CACHE | FOPEN_NOFLUSH;
        return Store(body, out);
      }
      case FUSE_READ: {
        fuse_read_in read;
        std::memcpy(&read, request, sizeof(read));
        const ssize_t n = pread(file_, body, read.size, static_cast<off_t>(read.offset));
        return n < 0 ? -errno : n;
      }
      case FUSE_STATFS: {
        fuse_statfs_out out{};
        out.st.bsize = out.st.frsize = 4096;
        return Store(body, out);
      }
      case FUSE_RELEASE:
      case FUSE_DESTROY:
        return 0;
      default:
        return -ENOSYS;
    }
  }

  template <typename T>
  static ssize_t Store(char* body, const T& value) {
    std::memcpy(body, &value, sizeof(value));
    return sizeof(value);
  }

  fuse_attr Attributes(uint64_t node) const {
    fuse_attr attr{};
    attr.ino = node;
    attr.size = node == kFile ? size_ : 0;
    attr.mode = node == kFile ? S_IFREG | 0400 : S_IFDIR | 0500;
    attr.nlink = node == kFile ? 1 : 2;
    attr.blksize = 4096;
    return attr;
  }

  const int file_;
  uint64_t size_ = 0;
  int device_ = -1;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: copy_server FILE DIR\n");
    return 2;
  }
  const Server server(argv[1], argv[2]);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  for (int i = 0; i < kWorkers; ++i) std::thread([&server] { server.Serve(); }).detach();
  int signal = 0;
  sigwait(&signals, &signal);
  umount2(argv[2], MNT_DETACH);
  std::_Exit(0);
}
