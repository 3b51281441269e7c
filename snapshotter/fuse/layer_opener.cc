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

absl::Status NotTheSame() {
  return PermissionDenied("the annotations do not open the layer that is served");
}

absl::Status CheckSame(const ServedView& view, const std::optional<crypt::LayerKey>& key,
                       const oci::IndexRef& index) {
  const LayerPtr layer = view.layer();
  if (layer == nullptr)
    return Unavailable("the layer's key has not come back after a restart of kapsule-fuse");
  if (layer->SameAs(key, index)) return absl::OkStatus();
  return NotTheSame();
}

// The descriptor of a blob that somebody else opened.
absl::StatusOr<std::unique_ptr<ReaderAt>> AdoptBlob(const UniqueFd& fd) {
  struct stat st;
  const int flags = fcntl(fd.get(), F_GETFL);
  if (flags < 0 || fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, "look at the blob");
  if (!S_ISREG(st.st_mode)) return InvalidArgument("the blob is not a regular file");
  if ((flags & O_ACCMODE) != O_RDONLY || (flags & O_PATH) != 0)
    return InvalidArgument("the blob is not open for reading alone");
  ASSIGN_OR_RETURN(UniqueFd own, fd.Duplicate());
  return blob::DirectFileReader::Adopt(std::move(own));
}

absl::StatusOr<std::unique_ptr<ReaderAt>> AdoptWhole(const LayerOpener::Layer& layer) {
  ASSIGN_OR_RETURN(std::unique_ptr<ReaderAt> source, AdoptBlob(layer.blob));
  if (source->size() != layer.size)
    return InvalidArgument("the blob has {} bytes instead of {}", source->size(), layer.size);
  return source;
}

absl::StatusOr<oci::Annotations> ReadAnnotations(const UniqueFd& fd) {
  ASSIGN_OR_RETURN(const std::string json,
                   ReadSealedMemfd(fd.get(), keyprovider::kMaxAnnotationBytes));
  return keyprovider::AnnotationsFromJson(json);
}

// What a view was made from, as the holder has it.
absl::StatusOr<oci::IndexRef> HeldIndex(const UniqueFd& annotations_fd) {
  const absl::StatusOr<oci::Annotations> annotations = ReadAnnotations(annotations_fd);
  absl::StatusOr<oci::IndexRef> index =
      annotations.ok() ? IndexOf(*annotations) : annotations.status();
  if (index.ok()) return index;
  return Unavailable("the annotations that the layer was opened with are bad: {}",
                     Describe(index.status()));
}

std::optional<crypt::LayerKey> CloneOf(const std::optional<crypt::LayerKey>& key) {
  if (!key) return std::nullopt;
  return key->Clone();
}

}  // namespace

absl::StatusOr<LayerOpener::Access> LayerOpener::Unwrap(const UniqueFd& annotations_fd,
                                                        bool encrypted, absl::Time deadline) const {
  ASSIGN_OR_RETURN(const int timeout_ms, MillisecondsUntil(deadline));
  ASSIGN_OR_RETURN(const oci::Annotations annotations, ReadAnnotations(annotations_fd));
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

absl::StatusOr<std::unique_ptr<blob::LayerReader>> LayerOpener::OpenReader(
    std::unique_ptr<ReaderAt> blob, const Access& access) const {
  return blob::LayerReader::Open(std::move(blob), access.index, CloneOf(access.key), shared_);
}

absl::StatusOr<uint64_t> LayerOpener::Open(const ViewTable::Opening& opening, Layer layer,
                                           absl::Time deadline) {
  ASSIGN_OR_RETURN(const Access access, Unwrap(layer.annotations, layer.encrypted, deadline));
  // One opening of a layer at a time: the next one finds its view.
  const HeldViews::Claim claim(held_, opening.name());
  ViewPtr view = views_.Known(opening.name());
  if (view != nullptr) {
    if (view->layer() == nullptr) RETURN_IF_ERROR(GiveLayer(*view, claim, layer, access));
    RETURN_IF_ERROR(CheckSame(*view, access.key, access.index));
  } else {
    ASSIGN_OR_RETURN(view, MakeView(layer, access, deadline));
    claim.Put(view->image().fd(), layer.annotations.get(), layer.blob.get());
  }
  const uint64_t size = view->size();
  RETURN_IF_ERROR(views_.Publish(opening, std::move(view)));
  return size;
}

// A view whose own annotations have not brought the key back after a restart. The
// index that they name, whose header commits to the key, must be the caller's.
absl::Status LayerOpener::GiveLayer(const ServedView& view, const HeldViews::Claim& claim,
                                    const Layer& layer, const Access& access) const {
  ASSIGN_OR_RETURN(const UniqueFd annotations, claim.Annotations());
  ASSIGN_OR_RETURN(const oci::IndexRef index, HeldIndex(annotations));
  if (!(index == access.index)) return NotTheSame();
  ASSIGN_OR_RETURN(std::unique_ptr<ReaderAt> source, AdoptWhole(layer));
  ASSIGN_OR_RETURN(std::unique_ptr<blob::LayerReader> reader,
                   OpenReader(std::move(source), access));
  return view.SetLayer(std::move(reader));
}

absl::StatusOr<ViewPtr> LayerOpener::MakeView(const Layer& layer, const Access& access,
                                              absl::Time deadline) {
  ASSIGN_OR_RETURN(std::unique_ptr<ReaderAt> source, AdoptWhole(layer));
  ASSIGN_OR_RETURN(std::unique_ptr<blob::LayerReader> reader,
                   OpenReader(std::move(source), access));
  ASSIGN_OR_RETURN(const Bytes toc_bytes, reader->ReadTocBytes());
  const absl::MutexLockMaybe one_at_a_time(toc_bytes.size() > kLargeToc ? &large_toc_mu_ : nullptr);
  RETURN_IF_ERROR(MillisecondsUntil(deadline).status());
  ASSIGN_OR_RETURN(const archive::Toc toc, reader->ParseToc(toc_bytes));
  const archive::IndexHeader& header = reader->header();
  ASSIGN_OR_RETURN(std::unique_ptr<view::Image> image,
                   view::Image::Make(toc, header.tar_length, header.encrypted));
  return std::make_shared<const ServedView>(layer.digest, std::move(image), std::move(reader));
}

absl::Status LayerOpener::Reopen(const ServedView& view, const UniqueFd& blob,
                                 const UniqueFd& annotations, absl::Time deadline) const {
  ASSIGN_OR_RETURN(const Access access, Unwrap(annotations, view.encrypted(), deadline));
  ASSIGN_OR_RETURN(std::unique_ptr<ReaderAt> source, AdoptBlob(blob));
  ASSIGN_OR_RETURN(std::unique_ptr<blob::LayerReader> reader,
                   OpenReader(std::move(source), access));
  return view.SetLayer(std::move(reader));
}

absl::Status LayerOpener::Authorise(const oci::Digest& digest, UniqueFd annotations,
                                    absl::Time deadline) {
  const ViewPtr view = views_.Known(digest.hex());
  if (view == nullptr) return NotFound("layer {} is not open", digest.text());
  ASSIGN_OR_RETURN(const Access access, Unwrap(annotations, view->encrypted(), deadline));
  return CheckSame(*view, access.key, access.index);
}

}  // namespace kapsule::fuse
