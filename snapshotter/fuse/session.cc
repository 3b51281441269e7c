#include "snapshotter/fuse/session.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <new>

#include "core/base/log.h"

namespace kapsule::fuse {
namespace {

// A view never changes, but it can be withdrawn: names are asked for each time.
constexpr uint64_t kAttrSeconds = 24 * 3600;
// Counts for the whole connection; the snapshotter raises it in
// /sys/fs/fuse/connections, where an unprivileged process is capped.
constexpr uint16_t kMaxBackground = 1024;
constexpr uint64_t kDotOffset = FUSE_ROOT_ID, kDotDotOffset = 2;

template <typename T>
std::optional<T> Load(ByteSpan bytes) {
  if (bytes.size() < sizeof(T)) return std::nullopt;
  return LoadLe<T>(bytes.data());
}

template <typename T>
size_t Store(MutableByteSpan out, const T& value) {
  StoreLe(out.data(), value);
  return sizeof(T);
}

fuse_attr RootAttr() {
  fuse_attr attr{};
  attr.ino = FUSE_ROOT_ID;
  attr.mode = S_IFDIR | 0500;
  attr.nlink = 2;
  attr.blksize = kPage;
  return attr;
}

fuse_attr AttrOf(uint64_t node, const ServedView& view) {
  fuse_attr attr{};
  attr.ino = node;
  attr.size = view.size();
  attr.blocks = CeilDiv(view.size(), 512);
  attr.mode = S_IFREG | 0400;
  attr.nlink = 1;
  attr.blksize = kPage;
  return attr;
}

bool HasReply(uint32_t opcode) {
  return opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET && opcode != FUSE_INTERRUPT;
}

// One directory entry; 0 where it does not fit.
size_t StoreEntry(MutableByteSpan out, uint64_t node, uint64_t offset, uint32_t type,
                  std::string_view name) {
  const size_t length = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + name.size());
  if (out.size() < length) return 0;
  fuse_dirent entry{};
  entry.ino = node;
  entry.off = offset;
  entry.namelen = static_cast<uint32_t>(name.size());
  entry.type = type >> 12;
  std::memset(out.data(), 0, length);
  std::memcpy(out.data(), &entry, FUSE_NAME_OFFSET);
  std::memcpy(out.data() + FUSE_NAME_OFFSET, name.data(), name.size());
  return length;
}

// The header of a request that is answered: a reply to request 0 would be a
// notification.
std::optional<fuse_in_header> AnswerableHeader(ByteSpan request) {
  const auto header = Load<fuse_in_header>(request);
  if (!header || header->unique == 0 || !HasReply(header->opcode)) return std::nullopt;
  return header;
}

size_t StoreOpened(MutableByteSpan body, uint64_t handle) {
  fuse_open_out out{};
  out.fh = handle;
  out.open_flags = FOPEN_KEEP_CACHE | FOPEN_NOFLUSH;
  return Store(body, out);
}

constexpr size_t kMaxLoggedOpcodes = 64;

}  // namespace

Session::Outcome Session::Handle(ByteSpan bytes, const Reply& reply, const RequestSlot& slot) {
  const auto header = AnswerableHeader(bytes);
  if (!header) return {};
  if (header->len != bytes.size()) return {reply.Finish(header->unique, EINVAL, 0), {}};
  const ByteSpan body = bytes.subspan(sizeof(*header));
  if (header->opcode == FUSE_READ) {
    const auto in = Load<fuse_read_in>(body);
    CheckedRead checked = in ? CheckRead(*header, *in) : CheckedRead{EINVAL, {}};
    if (checked.read) return {{}, std::move(checked.read)};
    return {reply.Finish(header->unique, checked.error, 0), {}};
  }
  Result result;
  try {
    result = Dispatch({*header, body}, reply.body(), slot);
  } catch (const std::bad_alloc&) {
    result.error = ENOMEM;
  }
  // Done again, it could have another result than the one that was sent.
  const bool counts = header->opcode == FUSE_OPEN || header->opcode == FUSE_RELEASE;
  if (counts && slot.state() != SharedSlot::kApplied) slot.SetAnswered(result.error);
  return {reply.Finish(header->unique, result.error, result.length), {}};
}

Session::CheckedRead Session::CheckRead(const fuse_in_header& header,
                                        const fuse_read_in& in) const {
  if (in.size > kMaxRead) return {EINVAL, {}};
  ViewPtr view = views_.OfHandle(header.nodeid, in.fh);
  if (view == nullptr) return {EBADF, {}};
  if (in.size == 0 || in.offset >= view->size()) return {};
  // Short at the end of the file only: the kernel takes any other short reply
  // for a file that was truncated.
  const size_t length = std::min<uint64_t>(in.size, view->size() - in.offset);
  return {0, PendingRead{header, in, std::move(view), length}};
}

ByteSpan Session::AnswerApplied(ByteSpan request, const Reply& reply, const RequestSlot& slot) {
  const auto header = AnswerableHeader(request);
  if (!header) return {};
  if (slot.error() != 0) return reply.Finish(header->unique, slot.error(), 0);
  if (header->opcode == FUSE_RELEASE) return reply.Finish(header->unique, 0, 0);
  if (header->opcode != FUSE_OPEN) return reply.Finish(header->unique, EIO, 0);
  return reply.Finish(header->unique, 0, StoreOpened(reply.body(), slot.file_handle()));
}

ByteSpan Session::Refuse(ByteSpan request, const Reply& reply, int error) {
  const auto header = AnswerableHeader(request);
  return header ? reply.Finish(header->unique, error, 0) : ByteSpan();
}

Session::Result Session::Dispatch(const Request& request, MutableByteSpan body,
                                  const RequestSlot& slot) {
  switch (request.header.opcode) {
    case FUSE_INIT:
      return Init(request, body);
    case FUSE_LOOKUP:
      return Lookup(request, body);
    case FUSE_GETATTR:
      return GetAttr(request, body);
    case FUSE_OPEN:
      return Open(request, body, slot);
    case FUSE_RELEASE:
      return Release(request, slot);
    case FUSE_OPENDIR:
      return OpenDir(request, body);
    case FUSE_READDIR:
      return ReadDir(request, body);
    case FUSE_STATFS:
      return StatFs(body);
    case FUSE_RELEASEDIR:
    case FUSE_DESTROY:
      return {};
    default:
      return Unknown(request.header.opcode);
  }
}

Session::Result Session::Unknown(uint32_t opcode) {
  bool first;
  {
    absl::MutexLock lock(&mu_);
    first = unknown_.size() < kMaxLoggedOpcodes && unknown_.insert(opcode).second;
  }
  if (first) log::info("FUSE requests of kind {} are not known here: ENOSYS", opcode);
  return {ENOSYS};
}

Session::Result Session::Init(const Request& request, MutableByteSpan body) {
  // Kernels before 7.36 send a shorter one; these four members are in all.
  const auto in = Load<std::array<uint32_t, 4>>(request.body);
  if (!in) return {EINVAL};
  const auto [major, minor, max_readahead, flags] = *in;
  if (major < FUSE_KERNEL_VERSION) return {EPROTO};
  fuse_init_out out{};
  out.major = FUSE_KERNEL_VERSION;
  out.minor = FUSE_KERNEL_MINOR_VERSION;
  // No passthrough: EROFS refuses files of a stacked file system.
  out.flags = flags & (FUSE_ASYNC_READ | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES);
  out.max_readahead = max_readahead;
  out.max_background = kMaxBackground;
  out.congestion_threshold = kMaxBackground / 4 * 3;
  out.max_write = kPage;  // nobody writes; keeps the request buffer small
  out.time_gran = 1;
  out.max_pages = kMaxRead / kPage;
  return {0, Store(body, out)};
}

Session::Result Session::Lookup(const Request& request, MutableByteSpan body) {
  std::string_view name = AsText(request.body);
  if (name.empty() || name.find('\0') != name.size() - 1) return {EINVAL};
  name.remove_suffix(1);
  if (request.header.nodeid != FUSE_ROOT_ID) return {ENOTDIR};
  const ViewPtr view = views_.Listed(name);
  if (view == nullptr) return {ENOENT};
  fuse_entry_out out{};
  out.nodeid = ViewTable::NodeOf(name);
  out.attr_valid = kAttrSeconds;
  out.attr = AttrOf(out.nodeid, *view);
  return {0, Store(body, out)};
}

Session::Result Session::GetAttr(const Request& request, MutableByteSpan body) {
  if (!Load<fuse_getattr_in>(request.body)) return {EINVAL};
  fuse_attr_out out{};
  out.attr_valid = kAttrSeconds;
  if (request.header.nodeid == FUSE_ROOT_ID) {
    out.attr = RootAttr();
  } else {
    const ViewPtr view = views_.OfNode(request.header.nodeid);
    if (view == nullptr) return {ENOENT};
    out.attr = AttrOf(request.header.nodeid, *view);
  }
  return {0, Store(body, out)};
}

Session::Result Session::Open(const Request& request, MutableByteSpan body,
                              const RequestSlot& slot) {
  const auto in = Load<fuse_open_in>(request.body);
  if (!in) return {EINVAL};
  if (request.header.nodeid == FUSE_ROOT_ID) return {EISDIR};
  if ((in->flags & O_ACCMODE) != O_RDONLY) return {EROFS};
  const std::optional<uint64_t> handle = views_.OpenHandle(request.header.nodeid, slot);
  if (!handle) return {ENOENT};
  return {0, StoreOpened(body, *handle)};
}

Session::Result Session::Release(const Request& request, const RequestSlot& slot) {
  const auto in = Load<fuse_release_in>(request.body);
  if (!in) return {EINVAL};
  views_.ReleaseHandle(request.header.nodeid, in->fh, slot);
  return {};
}

Session::Result Session::OpenDir(const Request& request, MutableByteSpan body) {
  if (!Load<fuse_open_in>(request.body)) return {EINVAL};
  if (request.header.nodeid != FUSE_ROOT_ID) return {ENOTDIR};
  return {0, Store(body, fuse_open_out{})};
}

Session::Result Session::ReadDir(const Request& request, MutableByteSpan body) {
  const auto in = Load<fuse_read_in>(request.body);
  if (!in || in->size > body.size()) return {EINVAL};
  if (request.header.nodeid != FUSE_ROOT_ID) return {ENOTDIR};
  // The offset after an entry is its node, so a change elsewhere skips nothing.
  size_t used = 0;
  const auto add = [&](uint64_t node, uint64_t offset, uint32_t type, std::string_view name) {
    const size_t length = StoreEntry(body.subspan(used, in->size - used), node, offset, type, name);
    used += length;
    return length != 0;
  };
  if (in->offset < kDotOffset && !add(FUSE_ROOT_ID, kDotOffset, S_IFDIR, ".")) return {0, used};
  if (in->offset < kDotDotOffset && !add(FUSE_ROOT_ID, kDotDotOffset, S_IFDIR, ".."))
    return {0, used};
  const size_t limit = in->size / FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + 64);
  for (const ViewPtr& view : views_.List(std::max(in->offset, kDotDotOffset), limit)) {
    const uint64_t node = ViewTable::NodeOf(view->name());
    if (!add(node, node, S_IFREG, view->name())) break;
  }
  return {0, used};
}

Session::Result Session::StatFs(MutableByteSpan body) {
  fuse_statfs_out out{};
  out.st.bsize = kPage;
  out.st.frsize = kPage;
  out.st.namelen = 64;
  return {0, Store(body, out)};
}

}  // namespace kapsule::fuse
