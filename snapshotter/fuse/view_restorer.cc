#include "snapshotter/fuse/view_restorer.h"

#include <sys/stat.h>

#include <cerrno>
#include <set>

#include "core/base/log.h"

namespace kapsule::fuse {
namespace {

std::string HeldName(const std::string& name) {
  return std::string(control::kHeldViewPrefix) + name;
}

absl::StatusOr<bool> IsSameFile(int one, int other) {
  struct stat ours, theirs;
  if (fstat(one, &ours) != 0 || fstat(other, &theirs) != 0)
    return ErrnoStatus(errno, "stat what the holder has of a view");
  return ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino;
}

bool IsBadContent(const absl::Status& status) {
  return absl::IsInvalidArgument(status) || absl::IsUnimplemented(status);
}

void LogFailure(const std::string& name, const absl::Status& status) {
  log::error("layer sha256:{} cannot be taken over: {}", name, Describe(status));
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ViewRestorer::HeldNames() const {
  ASSIGN_OR_RETURN(std::vector<std::string> names, holder_.List(control::kHeldViewPrefix));
  for (std::string& name : names) name.erase(0, control::kHeldViewPrefix.size());
  return names;
}

// Images and records are sealed: what changes is put as another file.
absl::StatusOr<bool> ViewRestorer::IsOf(const Loaded& loaded, const UniqueFd& image,
                                        const HeldLayer& held) {
  if (loaded.view == nullptr) return false;
  ASSIGN_OR_RETURN(const bool same_image, IsSameFile(loaded.view->image().fd(), image.get()));
  ASSIGN_OR_RETURN(const bool same_record,
                   IsSameFile(loaded.held->record.get(), held.record.get()));
  ASSIGN_OR_RETURN(const bool same_blob, IsSameFile(loaded.held->blob.get(), held.blob.get()));
  return same_image && same_record && same_blob;
}

// A predecessor may have been told since Prepare() where else the layer is read from.
absl::StatusOr<ViewPtr> ViewRestorer::Load(const std::string& name) {
  ASSIGN_OR_RETURN(const oci::Digest digest, oci::Digest::Parse("sha256:" + name));
  absl::StatusOr<std::vector<UniqueFd>> fds = holder_.Get(HeldName(name));
  if (absl::IsNotFound(fds.status())) return fds.status();
  // Also an answer that was cut, as where this process has too much open.
  if (!fds.ok()) return Unavailable("get it from the holder: {}", Describe(fds.status()));
  if (fds->size() != 3)
    return InvalidArgument("the holder has {} descriptors of it instead of 3", fds->size());
  UniqueFd& image_fd = (*fds)[0];
  auto held =
      std::make_shared<const HeldLayer>(HeldLayer{std::move((*fds)[1]), std::move((*fds)[2])});
  Loaded& loaded = loaded_[name];
  ASSIGN_OR_RETURN(const bool prepared, IsOf(loaded, image_fd, *held));
  if (prepared) return loaded.view;
  loaded = {};  // with its key, and its blob, before there is another of them
  ASSIGN_OR_RETURN(std::unique_ptr<view::Image> image, view::Image::Adopt(std::move(image_fd)));
  loaded = {std::make_shared<const ServedView>(digest, std::move(image)), std::move(held)};
  keys_.Fetch(loaded.view, loaded.held);
  return loaded.view;
}

absl::StatusOr<ViewRestorer::Prepared> ViewRestorer::Prepare() {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, HeldNames());
  Prepared prepared;
  for (const std::string& name : names) {
    absl::StatusOr<ViewPtr> view = Load(name);
    if (view.ok()) {
      prepared.views.push_back(*std::move(view));
    } else if (!absl::IsNotFound(view.status())) {  // closed meanwhile
      LogFailure(name, view.status());
      ++prepared.not_loaded;
    }
  }
  return prepared;
}

absl::StatusOr<size_t> ViewRestorer::Restore(ViewTable& views) {
  ASSIGN_OR_RETURN(const std::vector<std::string> held, HeldNames());
  std::vector<ViewPtr> found;
  std::set<std::string> bad;
  for (const std::string& name : views.Remembered()) {
    absl::StatusOr<ViewPtr> view = Load(name);
    if (view.ok()) {
      found.push_back(*std::move(view));
    } else if (IsBadContent(view.status())) {
      LogFailure(name, view.status());
      bad.insert(name);
    } else if (!absl::IsNotFound(view.status())) {
      return Annotate(view.status(), "take over layer sha256:" + name);
    }
  }
  const size_t count = views.Restore(found);
  for (const std::string& name : held)
    if (views.Known(name) == nullptr && bad.count(name) == 0)
      RETURN_IF_ERROR(holder_.Drop(HeldName(name)));
  loaded_.clear();
  return count;
}

}  // namespace kapsule::fuse
