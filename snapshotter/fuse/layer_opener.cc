#include "snapshotter/fuse/layer_opener.h"

#include <absl/time/clock.h>

#include <algorithm>

#include "core/archive/index_reader.h"
#include "core/blob/layer_reader.h"
#include "core/keyprovider/wire.h"
#include "snapshotter/fuse/layer_source.h"

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

absl::Status NotTheSame() {
  return PermissionDenied("the annotations do not open the layer that is served");
}

absl::Status NotOpen(const oci::Digest& digest) {
  return NotFound("layer {} is not open", digest.text());
}

absl::Status NoKeyYet() {
  return Unavailable("the layer's key has not come back after a restart of kapsule-fuse");
}

absl::Status CheckSame(const ServedView& view, const std::optional<crypt::LayerKey>& key,
                       const oci::IndexRef& index) {
  const LayerPtr layer = view.layer();
  if (layer == nullptr) return NoKeyYet();
  if (layer->SameAs(key, index)) return absl::OkStatus();
  return NotTheSame();
}

// Where kapsule-fetch said that it has it all, this only asks for its word.
absl::Status WaitForBytes(const ReaderAt& blob, uint64_t offset, size_t size, absl::Time deadline) {
  struct Answer {
    absl::Mutex mu;
    absl::CondVar given;
    std::optional<absl::Status> status ABSL_GUARDED_BY(mu);
  };
  if (blob.IsThere(offset, size)) return absl::OkStatus();
  const auto answer = std::make_shared<Answer>();
  blob.WhenThere(offset, size, [answer](absl::Status status) {
    absl::MutexLock lock(&answer->mu);
    answer->status = std::move(status);
    answer->given.Signal();
  });
  absl::MutexLock lock(&answer->mu);
  while (!answer->status && absl::Now() < deadline)
    answer->given.WaitWithDeadline(&answer->mu, deadline);
  if (answer->status) return *answer->status;
  return DeadlineExceeded("its table of contents did not come from the registry in time");
}

// Null where nobody has the view any more, or it has its layer.
ViewPtr StillWithoutLayer(const std::weak_ptr<const ServedView>& weak) {
  ViewPtr view = weak.lock();
  return view != nullptr && view->layer() == nullptr ? view : nullptr;
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
    const oci::Digest& digest, const UniqueFd& fd, std::optional<uint64_t> size, bool remote,
    const Access& access) const {
  ASSIGN_OR_RETURN(Blob file, AdoptBlob(fd));
  if (size && file.bytes->size() != *size)
    return InvalidArgument("the blob has {} bytes instead of {}", file.bytes->size(), *size);
  std::unique_ptr<ReaderAt> source = std::move(file.bytes);
  if (remote) {
    ASSIGN_OR_RETURN(const archive::IndexHeader header, archive::ReadHeader(*source, access.index));
    ASSIGN_OR_RETURN(source, fetch_.Open(digest, {std::move(source), file.id, file.fd}, header));
  }
  return blob::LayerReader::Open(std::move(source), access.index, CloneOf(access.key), shared_);
}

absl::StatusOr<uint64_t> LayerOpener::Open(const ViewTable::Opening& opening, Layer layer,
                                           absl::Time deadline) {
  ASSIGN_OR_RETURN(const Record record, ReadRecord(layer.record));
  if (record.remote != layer.remote)
    return InvalidArgument(
        "the layer's record says otherwise than the request whether it is remote");
  ASSIGN_OR_RETURN(const Access access, Unwrap(record.annotations, layer.encrypted, deadline));
  // One opening of a layer at a time: the next one finds its view.
  const HeldViews::Claim claim(held_, opening.name());
  ViewPtr view = views_.Known(opening.name());
  if (view != nullptr) {
    if (view->layer() == nullptr) RETURN_IF_ERROR(GiveLayer(*view, claim, layer, access));
    RETURN_IF_ERROR(CheckSame(*view, access.key, access.index));
    if (layer.remote) RETURN_IF_ERROR(UseFileOf(layer, *view, claim, access));
  } else {
    ASSIGN_OR_RETURN(view, MakeView(layer, access, deadline));
    claim.Put(view->image().fd(), layer.record.get(), layer.blob.get());
  }
  const uint64_t size = view->size();
  RETURN_IF_ERROR(views_.Publish(opening, std::move(view)));
  return size;
}

// A view whose own annotations have not brought the key back after a restart. The
// index that they name, whose header commits to the key, must be the caller's.
absl::Status LayerOpener::GiveLayer(const ServedView& view, const HeldViews::Claim& claim,
                                    const Layer& layer, const Access& access) const {
  ASSIGN_OR_RETURN(const UniqueFd record, claim.Record());
  ASSIGN_OR_RETURN(const oci::IndexRef index, HeldIndex(record));
  if (!(index == access.index)) return NotTheSame();
  ASSIGN_OR_RETURN(std::unique_ptr<blob::LayerReader> reader,
                   OpenReader(layer.digest, layer.blob, layer.size, layer.remote, access));
  RETURN_IF_ERROR(view.SetLayer(std::move(reader)));
  // Its blob may be another now, in the content store.
  claim.Put(view.image().fd(), layer.record.get(), layer.blob.get());
  return absl::OkStatus();
}

// kapsule-fetch may have begun a new file of an open layer since.
absl::Status LayerOpener::UseFileOf(const Layer& layer, const ServedView& view,
                                    const HeldViews::Claim& claim, const Access& access) const {
  const std::shared_ptr<RemoteBlob> blob = fetch_.Find(layer.digest);
  if (blob == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(Blob file, AdoptBlob(layer.blob));
  ASSIGN_OR_RETURN(const archive::IndexHeader header,
                   archive::ReadHeader(*file.bytes, access.index));
  RETURN_IF_ERROR(blob->CheckBlocks(header));
  ASSIGN_OR_RETURN(const bool another, blob->UseFile({std::move(file.bytes), file.id, file.fd}));
  if (another) claim.Put(view.image().fd(), layer.record.get(), layer.blob.get());
  return absl::OkStatus();
}

absl::StatusOr<ViewPtr> LayerOpener::MakeView(const Layer& layer, const Access& access,
                                              absl::Time deadline) {
  ASSIGN_OR_RETURN(std::unique_ptr<blob::LayerReader> reader,
                   OpenReader(layer.digest, layer.blob, layer.size, layer.remote, access));
  ASSIGN_OR_RETURN(const Bytes toc_bytes, ReadToc(layer.digest, *reader, deadline));
  const absl::MutexLockMaybe one_at_a_time(toc_bytes.size() > kLargeToc ? &large_toc_mu_ : nullptr);
  RETURN_IF_ERROR(MillisecondsUntil(deadline).status());
  ASSIGN_OR_RETURN(const archive::Toc toc, reader->ParseToc(toc_bytes));
  const archive::IndexHeader& header = reader->header();
  ASSIGN_OR_RETURN(std::unique_ptr<view::Image> image,
                   view::Image::Make(toc, header.tar_length, header.encrypted));
  return std::make_shared<const ServedView>(layer.digest, std::move(image), std::move(reader));
}

// Where it comes from a registry: also after it was dropped meanwhile, and once
// more after it was bad and has been checked.
absl::StatusOr<Bytes> LayerOpener::ReadToc(const oci::Digest& digest,
                                           const blob::LayerReader& reader,
                                           absl::Time deadline) const {
  const ReaderAt& source = reader.source();
  const uint64_t offset = reader.header().tar_length, size = reader.header().toc_length;
  bool suspected = false;
  for (;;) {
    RETURN_IF_ERROR(WaitForBytes(source, offset, size, deadline));
    absl::StatusOr<Bytes> toc = reader.ReadTocBytes();
    if (toc.ok()) return toc;
    if (!source.IsThere(offset, size)) continue;
    if (suspected || !absl::IsDataLoss(toc.status())) return toc;
    const std::shared_ptr<RemoteBlob> blob = fetch_.Find(digest);
    if (blob == nullptr) return toc;
    blob->Suspect(offset, size);
    suspected = true;
  }
}

// A view that another one replaces meanwhile must not bring its own, earlier file to the
// blob that both have: so it is not kept while the keyprovider is asked, and files come
// one after the other.
absl::Status LayerOpener::Reopen(const std::weak_ptr<const ServedView>& weak, const UniqueFd& blob,
                                 const UniqueFd& record_fd, absl::Time deadline) const {
  ViewPtr view = StillWithoutLayer(weak);
  if (view == nullptr) return absl::OkStatus();
  const std::string name = view->name();
  const bool encrypted = view->encrypted();
  view.reset();
  ASSIGN_OR_RETURN(const Record record, ReadRecord(record_fd));
  ASSIGN_OR_RETURN(const Access access, Unwrap(record.annotations, encrypted, deadline));
  if (StillWithoutLayer(weak) == nullptr) return absl::OkStatus();
  const HeldViews::Claim claim(held_, name);
  const ViewPtr waiting = StillWithoutLayer(weak);  // let go of before the claim
  if (waiting == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(std::unique_ptr<blob::LayerReader> reader,
                   OpenReader(waiting->digest(), blob, std::nullopt, record.remote, access));
  return waiting->SetLayer(std::move(reader));
}

absl::Status LayerOpener::TellBlob(const oci::Digest& digest, const UniqueFd& fd) const {
  ASSIGN_OR_RETURN(Blob file, AdoptBlob(fd));
  const std::shared_ptr<RemoteBlob> blob = fetch_.Find(digest);
  if (blob == nullptr) return absl::OkStatus();
  return blob->UseFile({std::move(file.bytes), file.id, file.fd}).status();
}

// An opening that waits for its first bytes has the blob already; one that had the claim
// has made it meanwhile, of an earlier file.
absl::Status LayerOpener::UseFile(const oci::Digest& digest, const UniqueFd& fd) {
  RETURN_IF_ERROR(TellBlob(digest, fd));
  if (views_.Known(digest.hex()) == nullptr) return NotOpen(digest);
  const HeldViews::Claim claim(held_, digest.hex());
  RETURN_IF_ERROR(TellBlob(digest, fd));
  const ViewPtr view = views_.Known(digest.hex());
  if (view == nullptr) return NotOpen(digest);
  // Without holder there is no successor.
  if (const absl::StatusOr<UniqueFd> held = claim.Record(); held.ok()) {
    ASSIGN_OR_RETURN(const Record record, ReadRecord(*held));
    if (record.remote) claim.Put(view->image().fd(), held->get(), fd.get());
  }
  return view->layer() == nullptr ? NoKeyYet() : absl::OkStatus();
}

absl::Status LayerOpener::UseLocal(const oci::Digest& digest, UniqueFd fd) {
  if (views_.Known(digest.hex()) == nullptr) return NotOpen(digest);
  const HeldViews::Claim claim(held_, digest.hex());
  const ViewPtr view = views_.Known(digest.hex());
  if (view == nullptr) return NotOpen(digest);
  if (view->layer() == nullptr) return NoKeyYet();
  const std::shared_ptr<RemoteBlob> blob = fetch_.Find(digest);
  if (blob == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(Blob file, AdoptBlob(fd));
  RETURN_IF_ERROR(blob->UseLocal(std::move(file.bytes)));
  ASSIGN_OR_RETURN(const UniqueFd held, claim.Record());
  ASSIGN_OR_RETURN(const UniqueFd record, LocalRecord(held));
  claim.Put(view->image().fd(), record.get(), fd.get());
  return absl::OkStatus();
}

absl::Status LayerOpener::Authorise(const oci::Digest& digest, UniqueFd annotations,
                                    absl::Time deadline) {
  const ViewPtr view = views_.Known(digest.hex());
  if (view == nullptr) return NotOpen(digest);
  ASSIGN_OR_RETURN(const Access access, Unwrap(annotations, view->encrypted(), deadline));
  return CheckSame(*view, access.key, access.index);
}

}  // namespace kapsule::fuse
