#include "snapshotter/fuse/request_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/base/log.h"

namespace kapsule::fuse {
namespace {

constexpr uint64_t kMagic = 0x5345525150414b01;  // "\1KAPQRES"
constexpr uint32_t kVersion = 1;
// The file cannot be cut while it is mapped.
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;

struct alignas(4096) SharedHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t header_size, slot_size, read_size, view_size, request_size;
  uint32_t slots, reads, views;
  std::atomic<uint32_t> workers;  // the most that any process has had
  std::atomic<uint32_t> initialised;
};

static_assert(std::atomic<uint32_t>::is_always_lock_free &&
              std::atomic<uint64_t>::is_always_lock_free);
static_assert(sizeof(SharedSlot) == 64 && sizeof(SharedRead) == 128 && sizeof(SharedView) == 64);

std::atomic_ref<uint32_t> LengthOf(MutableByteSpan slot) {
  return std::atomic_ref(*reinterpret_cast<uint32_t*>(slot.data()));
}
static_assert(offsetof(fuse_in_header, len) == 0);

}  // namespace

struct RequestMemory::Layout {
  SharedHeader header;
  std::array<SharedSlot, kMaxWorkers> slots;
  std::array<SharedRead, kMaxParked> reads;
  std::array<SharedView, kMaxViews> views;
  // Pages of workers that there are not are never touched.
  alignas(4096) std::array<std::array<std::byte, kRequestBuffer>, kMaxWorkers> requests;
};

ByteSpan RequestSlot::request() const {
  const uint32_t length = LengthOf(bytes_).load(std::memory_order_acquire);
  return bytes_.first(std::min<size_t>(length, bytes_.size()));
}

SharedSlot::State RequestSlot::state() const {
  const uint32_t state = shared_.state.load(std::memory_order_acquire);
  return state <= SharedSlot::kApplied ? static_cast<SharedSlot::State>(state) : SharedSlot::kNone;
}

void RequestSlot::SetHandles(SharedView& view, uint32_t index, uint64_t handles) const {
  shared_.view.store(index);
  shared_.handles.store(handles);
  shared_.file_handle.store(FileHandleOf(view, index));
  shared_.error.store(0);
  shared_.state.store(SharedSlot::kIntent);
  view.handles.store(handles);
  shared_.state.store(SharedSlot::kApplied);
}

void RequestSlot::SetAnswered(int error) const {
  shared_.error.store(static_cast<uint32_t>(error));
  shared_.state.store(SharedSlot::kApplied);
}

int RequestSlot::error() const {
  const uint32_t error = shared_.error.load();
  return error < 512 ? static_cast<int>(error) : EIO;  // the kernel takes no other
}

absl::Status RequestSlot::Complete(std::span<SharedView> views) const {
  if (state() != SharedSlot::kIntent || request().empty()) return absl::OkStatus();
  const uint32_t index = shared_.view.load();
  if (index >= views.size() || views[index].used.load() == 0)
    return InvalidArgument("a request in flight names view {}, which there is not", index);
  views[index].handles.store(shared_.handles.load());
  shared_.state.store(SharedSlot::kApplied);
  return absl::OkStatus();
}

void RequestSlot::Clear() const {
  // In this order: an applied request that is still there must not look like a
  // new one.
  LengthOf(bytes_).store(0);
  shared_.state.store(SharedSlot::kNone);
  shared_.attempts.store(0);
  shared_.error.store(0);
}

absl::StatusOr<std::unique_ptr<RequestMemory>> RequestMemory::Make(unsigned workers) {
  UniqueFd fd(memfd_create("requests", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return ErrnoStatus(errno, "memfd_create");
  if (ftruncate(fd.get(), sizeof(Layout)) != 0 ||
      fcntl(fd.get(), F_ADD_SEALS, kSeals | F_SEAL_SEAL) != 0)
    return ErrnoStatus(errno, "size the memory of requests");
  std::unique_ptr<RequestMemory> memory(new RequestMemory(std::move(fd), workers, false));
  RETURN_IF_ERROR(memory->Map());
  SharedHeader& header = memory->layout_->header;
  header.magic = kMagic;
  header.version = kVersion;
  header.header_size = sizeof(SharedHeader);
  header.slot_size = sizeof(SharedSlot);
  header.read_size = sizeof(SharedRead);
  header.view_size = sizeof(SharedView);
  header.request_size = kRequestBuffer;
  header.slots = kMaxWorkers;
  header.reads = kMaxParked;
  header.views = kMaxViews;
  memory->Lock();
  return memory;
}

absl::StatusOr<std::unique_ptr<RequestMemory>> RequestMemory::Adopt(UniqueFd fd, unsigned workers) {
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals)
    return InvalidArgument("the memory of requests is not a memory file of constant size");
  struct stat st;
  if (fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, "stat the memory of requests");
  if (static_cast<uint64_t>(st.st_size) < sizeof(SharedHeader))
    return InvalidArgument("the memory of requests has {} bytes", st.st_size);
  // Of another version before of another size.
  uint64_t start[2] = {};
  if (pread(fd.get(), start, sizeof(start), 0) != sizeof(start))
    return ErrnoStatus(errno, "read the memory of requests");
  if (start[0] != kMagic) return InvalidArgument("the memory of requests has another magic");
  const auto version = static_cast<uint32_t>(start[1]);
  if (version != kVersion)
    return Unimplemented(
        "the memory of requests has version {}, this program knows version {}: the layers must be "
        "mounted anew",
        version, kVersion);
  if (static_cast<uint64_t>(st.st_size) != sizeof(Layout))
    return InvalidArgument("the memory of requests has {} bytes instead of {}", st.st_size,
                           sizeof(Layout));
  std::unique_ptr<RequestMemory> memory(new RequestMemory(std::move(fd), workers, true));
  RETURN_IF_ERROR(memory->Map());
  RETURN_IF_ERROR(memory->Check());
  memory->Lock();
  return memory;
}

absl::Status RequestMemory::Map() {
  if (workers_ == 0 || workers_ > kMaxWorkers)
    return InvalidArgument("{} workers; 1 to {} are possible", workers_, kMaxWorkers);
  void* data = mmap(nullptr, sizeof(Layout), PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
  if (data == MAP_FAILED) return ErrnoStatus(errno, "map the memory of requests");
  madvise(data, sizeof(Layout), MADV_DONTDUMP);
  layout_ = static_cast<Layout*>(data);
  return absl::OkStatus();
}

RequestMemory::~RequestMemory() {
  if (layout_ != nullptr) munmap(layout_, sizeof(Layout));
}

absl::Status RequestMemory::Check() const {
  const SharedHeader& header = layout_->header;
  const bool good =
      header.header_size == sizeof(SharedHeader) && header.slot_size == sizeof(SharedSlot) &&
      header.read_size == sizeof(SharedRead) && header.view_size == sizeof(SharedView) &&
      header.request_size == kRequestBuffer && header.slots == kMaxWorkers &&
      header.reads == kMaxParked && header.views == kMaxViews &&
      header.workers.load() <= kMaxWorkers;
  if (!good) return InvalidArgument("the memory of requests has other sizes than its version");
  return absl::OkStatus();
}

// Pages that are there and stay: a process that is killed in a read of /dev/fuse
// loses the request where the kernel has to wait for a page.
void RequestMemory::Lock() {
  const auto keep = [](const void* data, size_t size) {
    const bool locked = mlock(data, size) == 0;
    const auto* bytes = static_cast<const volatile std::byte*>(data);
    for (size_t at = 0; !locked && at < size; at += 4096) static_cast<void>(bytes[at]);
    return locked;
  };
  locked_ = keep(layout_, offsetof(Layout, requests));
  locked_ = keep(layout_->requests.data(), workers_ * kRequestBuffer) && locked_;
}

void RequestMemory::TakeOver() {
  for (uint32_t i = 0; i < slots(); ++i) {
    const absl::Status status = slot(i).Complete(views());
    if (!status.ok()) log::error("{}", Describe(status));
  }
  std::atomic<uint32_t>& most = layout_->header.workers;
  most.store(std::max(most.load(), workers_));
  absl::MutexLock lock(&mu_);
  free_reads_.reserve(kMaxParked);
  for (uint32_t i = kMaxParked; i-- > 0;)
    if (layout_->reads[i].used.load() == 0) free_reads_.push_back(i);
}

bool RequestMemory::initialised() const { return layout_->header.initialised.load() != 0; }
void RequestMemory::SetInitialised() const { layout_->header.initialised.store(1); }

uint32_t RequestMemory::slots() const {
  return std::min(std::max(layout_->header.workers.load(), workers_), kMaxWorkers);
}

RequestSlot RequestMemory::slot(uint32_t index) const {
  return {layout_->slots[index], layout_->requests[index]};
}

std::span<SharedView> RequestMemory::views() const { return layout_->views; }

SharedRead& RequestMemory::parked(uint32_t index) const { return layout_->reads[index]; }

std::optional<uint32_t> RequestMemory::Park(const fuse_in_header& header, const fuse_read_in& in,
                                            uint32_t attempts) {
  uint32_t index;
  {
    absl::MutexLock lock(&mu_);
    if (free_reads_.empty()) return std::nullopt;
    index = free_reads_.back();
    free_reads_.pop_back();
  }
  SharedRead& read = parked(index);
  read.header = header;
  read.in = in;
  read.attempts.store(attempts);
  read.used.store(1);
  return index;
}

void RequestMemory::Unpark(uint32_t index) {
  parked(index).used.store(0);
  absl::MutexLock lock(&mu_);
  free_reads_.push_back(index);
}

std::vector<uint32_t> RequestMemory::ParkedReads() const {
  std::vector<uint32_t> reads;
  for (uint32_t i = 0; i < kMaxParked; ++i)
    if (layout_->reads[i].used.load() != 0) reads.push_back(i);
  return reads;
}

}  // namespace kapsule::fuse
