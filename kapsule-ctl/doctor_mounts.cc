#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <thread>
#include <utility>

#include "core/base/file.h"
#include "core/mounts/erofs_mount.h"
#include "core/view/view.h"
#include "kapsule-ctl/doctor.h"

namespace kapsule::ctl {
namespace {

namespace fs = std::filesystem;

constexpr char kText[] = "kapsule";
// Where a file's data stands in its tar decides the size of blocks.
constexpr uint64_t kOwnLayer = 4096, kForeignLayer = 512;

// A view of one file, in a folder that goes with the object.
class TinyView {
 public:
  static absl::StatusOr<TinyView> Make(uint64_t data_offset) {
    std::string name = "/var/tmp/kapsule-doctor-XXXXXX";  // on disk, unlike many a /tmp
    if (mkdtemp(name.data()) == nullptr) return ErrnoStatus(errno, name);
    TinyView view{fs::path(name)};
    archive::Toc toc{{archive::FileEntry("file", sizeof(kText))}};
    toc.entries[0].offset = data_offset;
    std::string tar(data_offset, '\0');
    tar.append(kText, sizeof(kText));
    ASSIGN_OR_RETURN(const view::Metadata metadata, view::BuildMetadata(toc, 8192, {true}));
    tar.resize(8192);
    RETURN_IF_ERROR(WriteFileAtomic(view.image(), AsBytes(metadata.bytes + tar), 0600));
    RETURN_IF_ERROR(MakeDirs(view.tree(), 0700));
    return view;
  }
  TinyView(TinyView&& other) noexcept : folder_(std::exchange(other.folder_, {})) {}
  ~TinyView() {
    if (!folder_.empty()) (void)RemoveTree(folder_);  // nobody is helped by its failure
  }
  fs::path image() const { return folder_ / "image"; }
  fs::path tree() const { return folder_ / "tree"; }

 private:
  explicit TinyView(fs::path folder) : folder_(std::move(folder)) {}
  fs::path folder_;
};

struct Tried {
  absl::Status status;
  bool direct = false;  // whether a file opens with O_DIRECT
};

absl::Status ReadBack(const fs::path& file) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(file, 100));
  if (text == std::string(kText, sizeof(kText))) return absl::OkStatus();
  return DataLoss("{} reads as other bytes", file.string());
}

// In the mount namespace of the calling thread.
Tried MountAndRead(const TinyView& view, ViewMount way) {
  Tried tried{ErofsMounter(way).Mount(view.image(), view.tree())};
  if (!tried.status.ok()) return tried;
  tried.status = ReadBack(view.tree() / "file");
  tried.direct = OpenFile(view.tree() / "file", O_RDONLY | O_DIRECT).ok();
  const absl::Status unmounted = UnmountErofs(view.tree());
  if (tried.status.ok()) tried.status = unmounted;
  return tried;
}

// In a thread with a mount namespace of its own: nobody else sees the mount, and it
// goes with the thread, whatever happens.
Tried Try(ViewMount way, uint64_t data_offset) {
  const absl::StatusOr<TinyView> view = TinyView::Make(data_offset);
  if (!view.ok()) return {view.status()};
  Tried tried;
  std::thread([&] {
    if (unshare(CLONE_NEWNS) == 0 &&
        mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0)
      tried = MountAndRead(*view, way);
    else
      tried.status = ErrnoStatus(errno, "a mount namespace of its own (CAP_SYS_ADMIN)");
  }).join();
  return tried;
}

Finding ByFile(const NodeSettings&) {
  const Tried tried = Try(ViewMount::kFile, kOwnLayer);
  if (!tried.status.ok())
    return Good(
        fmt::format("not on this kernel, loop devices do instead ({})", Message(tried.status)));
  return Good(fmt::format("works; opening a model with O_DIRECT {}",
                          tried.direct ? "works" : "gives EINVAL"));
}

Finding ByLoop(const NodeSettings&) {
  const Tried tried = Try(ViewMount::kLoop, kOwnLayer);
  if (tried.status.ok())
    return Good(fmt::format("works; opening a model with O_DIRECT {}",
                            tried.direct ? "works" : "does not"));
  return Warn(Message(tried.status),
              "only view_mount = \"loop\" and kernels before 6.13 need loop devices: load the"
              " modules (modprobe loop erofs)");
}

Finding ViewsByFile(const std::string& why) {
  return Good(
      fmt::format("by file{}; a program that opens models with O_DIRECT needs"
                  " view_mount = \"loop\"",
                  why));
}

Finding NoViews(const std::string& way, const absl::Status& status) {
  return Bad(fmt::format("cannot be mounted {}: {}", way, Message(status)),
             "load the modules (modprobe erofs loop) or update the kernel: Linux 6.13 with"
             " CONFIG_EROFS_FS_BACKED_BY_FILE, or any with EROFS and loop devices");
}

Finding Views(const NodeSettings& settings) {
  const absl::StatusOr<ViewMount> way = ParseViewMount(settings.view_mount);
  if (!way.ok()) return Bad(Message(way.status()), "correct the snapshotter's config");
  if (*way != ViewMount::kLoop) {
    const Tried file = Try(ViewMount::kFile, kOwnLayer);
    if (file.status.ok()) return ViewsByFile(*way == ViewMount::kFile ? ", as configured" : "");
    if (*way == ViewMount::kFile) return NoViews("by file, as configured", file.status);
  }
  const Tried loop = Try(ViewMount::kLoop, kOwnLayer);
  if (!loop.status.ok()) return NoViews("by loop device", loop.status);
  return Good(*way == ViewMount::kLoop ? "through loop devices, as configured"
                                       : "through loop devices");
}

Finding ForeignLayers(const NodeSettings& settings) {
  const ViewMount way = ParseViewMount(settings.view_mount).value_or(ViewMount::kAuto);
  absl::Status status = Try(way, kForeignLayer).status;
  if (status.ok()) return Good("layers that other tools have packed can be mounted");
  return Warn(fmt::format("no EROFS with blocks of 512 bytes ({}): layers that other tools have"
                          " packed cannot be mounted",
                          Message(status)),
              "pack with kapsule-ctl, or update to Linux 6.4 or later");
}

// Asked last: a mount that was tried has loaded the module.
Finding Erofs(const NodeSettings&) {
  std::ifstream file("/proc/filesystems");
  for (std::string line; std::getline(file, line);) {
    if (line.ends_with("\terofs")) return Good("in the kernel");
  }
  return Bad("not in the kernel",
             "load the module (modprobe erofs); its package is the kernel's own"
             " (Ubuntu: linux-modules-extra)");
}

}  // namespace

std::vector<Check> MountChecks() {
  return {{"EROFS by file", true, ByFile},
          {"EROFS by loop", true, ByLoop},
          {"EROFS", false, Erofs},
          {"views", true, Views},
          {"other tars", true, ForeignLayers}};
}

}  // namespace kapsule::ctl
