#include "snapshotter/faulty_file.h"

#include <linux/fuse.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

namespace kapsule::snapshotter::testing {
namespace {

constexpr uint64_t kNode = 2;
constexpr std::string_view kName = "blob-faulty";

void Must(bool good, const char* what) {
  if (good) return;
  std::perror(what);
  std::abort();
}

template <typename T>
void Put(std::string& body, const T& value) {
  body.assign(reinterpret_cast<const char*>(&value), sizeof(value));
}

template <typename T>
T Get(std::string_view bytes) {
  T value{};
  std::memcpy(&value, bytes.data(), std::min(sizeof(value), bytes.size()));
  return value;
}

fuse_attr AttrOf(uint64_t node, uint64_t size) {
  fuse_attr attr{};
  attr.ino = node;
  attr.mode = node == kNode ? S_IFREG | 0444 : S_IFDIR | 0555;
  attr.nlink = 1;
  attr.size = node == kNode ? size : 0;
  attr.blksize = 4096;
  return attr;
}

}  // namespace

FaultyFile::FaultyFile(std::filesystem::path folder, std::string bytes)
    : folder_(std::move(folder)), bytes_(std::move(bytes)) {
  Must(MakeDirs(folder_, 0755).ok(), "folder");
  fuse_ = OpenFile("/dev/fuse", O_RDWR).value();
  const std::string options = fmt::format(
      "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,max_read=1048576", fuse_.get());
  Must(mount("faulty", folder_.c_str(), "fuse.faulty", MS_RDONLY | MS_NOSUID | MS_NODEV,
             options.c_str()) == 0,
       "mount");
  thread_ = std::thread([this] { Serve(); });
}

FaultyFile::~FaultyFile() {
  umount2(folder_.c_str(), MNT_DETACH);  // its last user gone, the server reads ENODEV
  thread_.join();
  rmdir(folder_.c_str());
}

void FaultyFile::Serve() {
  std::string request(1 << 20, '\0'), body;
  for (;;) {
    const ssize_t n = read(fuse_.get(), request.data(), request.size());
    if (n < 0 && (errno == EINTR || errno == ENOENT || errno == EAGAIN)) continue;
    if (n < static_cast<ssize_t>(sizeof(fuse_in_header))) return;
    const auto header = Get<fuse_in_header>(request);
    if (header.opcode == FUSE_FORGET || header.opcode == FUSE_BATCH_FORGET ||
        header.opcode == FUSE_INTERRUPT)
      continue;
    int error = 0;
    body.clear();
    Answer(std::string_view(request).substr(0, n), body, &error);
    if (error != 0) body.clear();
    fuse_out_header out{};
    out.len = static_cast<uint32_t>(sizeof(out) + body.size());
    out.error = -error;
    out.unique = header.unique;
    const iovec parts[] = {{&out, sizeof(out)}, {body.data(), body.size()}};
    if (writev(fuse_.get(), parts, 2) < 0 && errno != ENOENT) return;
  }
}

void FaultyFile::Answer(std::string_view request, std::string& body, int* error) const {
  const auto header = Get<fuse_in_header>(request);
  const std::string_view in = request.substr(sizeof(header));
  switch (header.opcode) {
    case FUSE_INIT: {
      fuse_init_out out{};
      out.major = FUSE_KERNEL_VERSION;
      out.minor = FUSE_KERNEL_MINOR_VERSION;
      out.flags = FUSE_ASYNC_READ | FUSE_MAX_PAGES;
      out.max_readahead = 128 << 10;
      out.max_background = 64;
      out.max_write = 4096;
      out.max_pages = 256;
      Put(body, out);
      break;
    }
    case FUSE_LOOKUP: {
      if (in.substr(0, in.find('\0')) != kName) {
        *error = ENOENT;
        break;
      }
      fuse_entry_out out{};
      out.nodeid = kNode;
      out.attr = AttrOf(kNode, bytes_.size());
      Put(body, out);
      break;
    }
    case FUSE_GETATTR: {
      fuse_attr_out out{};
      out.attr = AttrOf(header.nodeid, bytes_.size());
      Put(body, out);
      break;
    }
    case FUSE_OPEN: {
      fuse_open_out out{};
      out.open_flags = FOPEN_DIRECT_IO;  // what is broken now is not cached
      Put(body, out);
      break;
    }
    case FUSE_READ: {
      const auto read = Get<fuse_read_in>(in);
      const uint64_t begin = std::min<uint64_t>(read.offset, bytes_.size());
      const uint64_t end = std::min<uint64_t>(begin + read.size, bytes_.size());
      if (begin < bad_end_ && bad_begin_ < end)
        *error = EIO;
      else
        body = bytes_.substr(begin, end - begin);
      break;
    }
    case FUSE_RELEASE:
      break;
    default:
      *error = ENOSYS;
  }
}

}  // namespace kapsule::snapshotter::testing
