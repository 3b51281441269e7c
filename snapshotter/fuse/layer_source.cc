#include "snapshotter/fuse/layer_source.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

#include "core/blob/direct_file.h"
#include "core/control/control_wire.h"
#include "core/keyprovider/wire.h"

namespace kapsule::fuse {

absl::StatusOr<oci::IndexRef> IndexOf(const oci::Annotations& annotations) {
  const auto it = annotations.find(oci::kIndexAnnotation);
  if (it == annotations.end())
    return InvalidArgument("the layer has no annotation {}", oci::kIndexAnnotation);
  const auto index = oci::IndexRef::FromJson(it->second);
  if (!index.ok()) return Annotate(index.status(), oci::kIndexAnnotation);
  return index;
}

absl::StatusOr<Blob> AdoptBlob(const UniqueFd& fd) {
  struct stat st;
  const int flags = fcntl(fd.get(), F_GETFL);
  if (flags < 0 || fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, "look at the blob");
  if (!S_ISREG(st.st_mode)) return InvalidArgument("the blob is not a regular file");
  if ((flags & O_ACCMODE) != O_RDONLY || (flags & O_PATH) != 0)
    return InvalidArgument("the blob is not open for reading alone");
  ASSIGN_OR_RETURN(UniqueFd own, fd.Duplicate());
  const int number = own.get();
  ASSIGN_OR_RETURN(std::unique_ptr<ReaderAt> bytes, blob::DirectFileReader::Adopt(std::move(own)));
  return Blob{std::move(bytes), {st.st_dev, st.st_ino}, number};
}

absl::StatusOr<Record> ReadRecord(const UniqueFd& fd) {
  constexpr size_t kMaxRecord = keyprovider::kMaxAnnotationBytes + control::kMaxRecordExtra;
  ASSIGN_OR_RETURN(const std::string json, ReadSealedMemfd(fd.get(), kMaxRecord));
  ASSIGN_OR_RETURN(const control::LayerRecord record, control::RecordFromJson(json));
  ASSIGN_OR_RETURN(UniqueFd annotations, SealedMemfd("annotations", AsBytes(record.annotations)));
  return Record{std::move(annotations), record.remote};
}

absl::StatusOr<oci::Annotations> ReadAnnotations(const UniqueFd& fd) {
  ASSIGN_OR_RETURN(const std::string json,
                   ReadSealedMemfd(fd.get(), keyprovider::kMaxAnnotationBytes));
  return keyprovider::AnnotationsFromJson(json);
}

absl::StatusOr<oci::IndexRef> HeldIndex(const UniqueFd& record_fd) {
  const auto read = [&]() -> absl::StatusOr<oci::IndexRef> {
    ASSIGN_OR_RETURN(const Record record, ReadRecord(record_fd));
    ASSIGN_OR_RETURN(const oci::Annotations annotations, ReadAnnotations(record.annotations));
    return IndexOf(annotations);
  };
  absl::StatusOr<oci::IndexRef> index = read();
  if (index.ok()) return index;
  return Unavailable("the annotations that the layer was opened with are bad: {}",
                     Describe(index.status()));
}

absl::StatusOr<UniqueFd> LocalRecord(const UniqueFd& record_fd) {
  constexpr size_t kMaxRecord = keyprovider::kMaxAnnotationBytes + control::kMaxRecordExtra;
  ASSIGN_OR_RETURN(const std::string json, ReadSealedMemfd(record_fd.get(), kMaxRecord));
  ASSIGN_OR_RETURN(control::LayerRecord record, control::RecordFromJson(json));
  record.remote = false;
  return SealedMemfd("record", AsBytes(control::RecordToJson(record)));
}

}  // namespace kapsule::fuse
