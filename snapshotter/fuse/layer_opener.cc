#include "snapshotter/fuse/layer_opener.h"

#include <absl/time/clock.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "core/blob/direct_file.h"
#include "core/blob/layer_reader.h"
#include "core/keyprovider/wire.h"

namespace kapsule::fuse {
namespace {

// A TOC of more bytes is parsed alone: it and what becomes of it take some
// hundred MiB for a while.
constexpr size_t kLargeToc = 1 << 20;

absl::StatusOr<int> MillisecondsUntil(absl::Time deadline) {
  const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
  if (left <= 0) return DeadlineExceeded("nobody waits for it any more");
  return static_cast<int>(std::min<int64_t>(left, 60'000));
}

absl::StatusOr<oci::IndexRef> IndexOf(const oci::Annotations& annotations) {
  const auto it = annotations.find(oci::kIndexAnnotation);
  if (it == annotations.end())
    return InvalidArgument("the layer has no annotation {}", oci::kIndexAnnotation);
  const auto index = oci::IndexRef::FromJson(it->second);
  if (!index.ok()) return Annotate(index.status(), oci::kIndexAnnotation);
  return index;
}

absl::Status CheckSame(const ServedView& view, const std::optional<crypt::LayerKey>& key,
                       const oci::IndexRef& index) {
  if (view.layer().SameAs(key, index)) return absl::OkStatus();
  return PermissionDenied("the annotations do not open the layer that is served");
}

// The descriptor of a blob that somebody else opened.
absl::StatusOr<std::unique_ptr<ReaderAt>> AdoptBlob(const UniqueFd& fd, uint64_t size) {
  struct stat st;
  const int flags = fcntl(fd.get(), F_GETFL);
  if (flags < 0 || fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, "look at the blob");
  if (!S_ISREG(st.st_mode)) return InvalidArgument("the blob is not a regular file");
  if ((flags & O_ACCMODE) != O_RDONLY || (flags & O_PATH) != 0)
    return InvalidArgument("the blob is not open for reading alone");
  if (static_cast<uint64_t>(st.st_size) != size)
    return InvalidArgument("the blob has {} bytes instead of {}", st.st_size, size);
  ASSIGN_OR_RETURN(UniqueFd own, fd.Duplicate());
  return blob::DirectFileReader::Adopt(std::move(own));
}

std::optional<crypt::LayerKey> CloneOf(const std::optional<crypt::LayerKey>& key) {
  if (!key) return std::nullopt;
  return key->Clone();
}

}  // namespace

absl::StatusOr<LayerOpener::Access> LayerOpener::Unwrap(const UniqueFd& annotations_fd,
                                                        bool encrypted, absl::Time deadline) const {
  ASSIGN_OR_RETURN(const int timeout_ms, MillisecondsUntil(deadline));
  ASSIGN_OR_RETURN(const std::string json,
                   ReadSealedMemfd(annotations_fd.get(), keyprovider::kMaxAnnotationBytes));
  ASSIGN_OR_RETURN(const oci::Annotations annotations, keyprovider::AnnotationsFromJson(json));
  if (!encrypted) {
    ASSIGN_OR_RETURN(const oci::IndexRef index, IndexOf(annotations));
    return Access{index, std::nullopt};
  }
  ASSIGN_OR_RETURN(keyprovider::UnwrappedLayer unwrapped,
                   keyprovider::Unwrap(keyprovider_, annotations_fd.get(), timeout_ms));
  if (!unwrapped.index)
    return Unimplemented(
        "the layer was not encrypted by kapsule: its private options name no index, which reading "
        "on demand needs; build the image with kapsule-ctl");
  ASSIGN_OR_RETURN(const oci::IndexRef index, IndexOf(annotations));
  if (!(index == *unwrapped.index))
    return InvalidArgument("annotation {} differs from the layer's private options",
                           oci::kIndexAnnotation);
  return Access{index, std::move(unwrapped.key)};
}

absl::StatusOr<uint64_t> LayerOpener::Open(const ViewTable::Opening& opening, Layer layer,
                                           absl::Time deadline) {
  ASSIGN_OR_RETURN(const Access access, Unwrap(layer.annotations, layer.encrypted, deadline));
  // Another opening of the layer may win the race; then its key is compared.
  absl::StatusOr<uint64_t> size = OpenOnce(opening, layer, access, deadline);
  if (absl::IsAlreadyExists(size.status())) size = OpenOnce(opening, layer, access, deadline);
  return size;
}

absl::StatusOr<uint64_t> LayerOpener::OpenOnce(const ViewTable::Opening& opening,
                                               const Layer& layer, const Access& access,
                                               absl::Time deadline) {
  ViewPtr view = views_.Known(opening.name());
  if (view != nullptr) {
    RETURN_IF_ERROR(CheckSame(*view, access.key, access.index));
  } else {
    ASSIGN_OR_RETURN(view, MakeView(layer, access, deadline));
  }
  const uint64_t size = view->size();
  RETURN_IF_ERROR(views_.Publish(opening, std::move(view)));
  return size;
}

absl::StatusOr<ViewPtr> LayerOpener::MakeView(const Layer& layer, const Access& access,
                                              absl::Time deadline) {
  ASSIGN_OR_RETURN(std::unique_ptr<ReaderAt> source, AdoptBlob(layer.blob, layer.size));
  ASSIGN_OR_RETURN(std::unique_ptr<blob::LayerReader> reader,
                   blob::LayerReader::Open(std::move(source), access.index, CloneOf(access.key)));
  ASSIGN_OR_RETURN(const Bytes toc, reader->ReadTocBytes());
  const absl::MutexLockMaybe one_at_a_time(toc.size() > kLargeToc ? &large_toc_mu_ : nullptr);
  RETURN_IF_ERROR(MillisecondsUntil(deadline).status());
  ASSIGN_OR_RETURN(std::unique_ptr<view::View> view, view::View::Make(std::move(reader), toc));
  return std::make_shared<const ServedView>(layer.digest, std::move(view));
}

absl::Status LayerOpener::Authorise(const oci::Digest& digest, UniqueFd annotations,
                                    absl::Time deadline) {
  const ViewPtr view = views_.Known(digest.hex());
  if (view == nullptr) return NotFound("layer {} is not open", digest.text());
  ASSIGN_OR_RETURN(const Access access,
                   Unwrap(annotations, view->layer().header().encrypted, deadline));
  return CheckSame(*view, access.key, access.index);
}

}  // namespace kapsule::fuse
