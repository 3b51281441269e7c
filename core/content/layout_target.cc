#include "core/content/layout_target.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

namespace kapsule::content {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kTemporary = "new-";
constexpr uint64_t kPage = 4096;
constexpr uint64_t kLargeBlob = 1 << 20;

class FileUpload final : public oci::BlobUpload {
 public:
  // `large`: written around the page cache as long as the pieces allow it. A
  // layer would fill the cache, and doing that costs as much as encrypting it.
  FileUpload(fs::path layout, UniqueFd fd, fs::path temporary, bool large)
      : layout_(std::move(layout)), fd_(std::move(fd)), temporary_(std::move(temporary)) {
    direct_ = large && SetDirectIo(fd_.get(), true);
  }

  ~FileUpload() override {
    if (!temporary_.empty()) unlink(temporary_.c_str());
  }

  absl::Status Write(ByteSpan bytes) override {
    if (direct_ && !IsAligned(bytes)) StopDirect();
    const absl::Status written = direct_ ? WriteDirect(bytes) : WriteAll(fd_.get(), bytes);
    written_ += bytes.size();
    return Annotate(written, temporary_.string());
  }

  absl::Status Commit(const oci::Digest& digest, uint64_t size) override {
    if (written_ != size)
      return DataLoss("blob {} has {} bytes, not {}", digest.text(), written_, size);
    if (fchmod(fd_.get(), 0644) != 0 || fsync(fd_.get()) != 0)
      return ErrnoStatus(errno, "sync " + temporary_.string());
    const fs::path path = BlobPath(layout_, digest);
    if (rename(temporary_.c_str(), path.c_str()) != 0)
      return ErrnoStatus(errno, "rename to " + path.string());
    temporary_.clear();
    ASSIGN_OR_RETURN(const UniqueFd folder, OpenFile(BlobsFolder(layout_), O_RDONLY | O_DIRECTORY));
    if (fsync(folder.get()) != 0) return ErrnoStatus(errno, "sync " + path.string());
    return absl::OkStatus();
  }

 private:
  bool IsAligned(ByteSpan bytes) const {
    return (reinterpret_cast<uintptr_t>(bytes.data()) | bytes.size() | written_) % kPage == 0;
  }

  void StopDirect() {
    SetDirectIo(fd_.get(), false);
    direct_ = false;
  }

  // Disks that want more than pages answer EINVAL, as does what is left after a
  // write that was cut short.
  absl::Status WriteDirect(ByteSpan bytes) {
    while (!bytes.empty()) {
      const ssize_t n = write(fd_.get(), bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) break;
      bytes = bytes.subspan(static_cast<size_t>(n));
    }
    if (bytes.empty()) return absl::OkStatus();
    StopDirect();
    return WriteAll(fd_.get(), bytes);
  }

  const fs::path layout_;
  const UniqueFd fd_;
  fs::path temporary_;  // empty once renamed
  uint64_t written_ = 0;
  bool direct_ = false;
};

// Uploads hold a lock on their file as long as they live; a file that nobody
// holds was left by a writer that was killed.
void RemoveLeftovers(const fs::path& layout) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(BlobsFolder(layout), error)) {
    if (!entry.path().filename().string().starts_with(kTemporary)) continue;
    const absl::StatusOr<std::unique_ptr<FileReader>> file = OpenRegular(entry.path());
    if (file.ok() && flock((*file)->fd(), LOCK_EX | LOCK_NB) == 0) unlink(entry.path().c_str());
  }
}

absl::Status MakeLayout(const fs::path& layout) {
  RETURN_IF_ERROR(MakeDirs(layout, 0755));
  ASSIGN_OR_RETURN(const LayoutLock lock, LayoutLock::Take(layout));
  std::error_code error;
  if (!fs::exists(layout / "oci-layout", error)) {
    if (!fs::is_empty(layout, error) && !error)
      return FailedPrecondition("{} is neither empty nor an image layout", layout.string());
    RETURN_IF_ERROR(
        WriteFileAtomic(layout / "oci-layout", AsBytes(R"({"imageLayoutVersion":"1.0.0"})"), 0644));
  }
  RETURN_IF_ERROR(CheckLayout(layout));
  RETURN_IF_ERROR(MakeDirs(BlobsFolder(layout), 0755));
  RemoveLeftovers(layout);
  return absl::OkStatus();
}

absl::StatusOr<Json> ReadIndex(const fs::path& path) {
  const absl::StatusOr<std::string> text = ReadRegular(path, oci::kMaxManifestBytes);
  if (absl::IsNotFound(text.status()))
    return Json{{"schemaVersion", 2}, {"mediaType", oci::kIndexType}, {"manifests", Json::array()}};
  if (!text.ok()) return text.status();
  absl::StatusOr<Json> json = ParseJson(*text, oci::kMaxManifestBytes);
  if (!json.ok()) return Annotate(json.status(), path.string());
  const absl::Status is_index = oci::ParseIndex(*text).status();
  if (!is_index.ok()) return Annotate(is_index, path.string());
  return json;
}

// An unnamed entry is replaced by the same unnamed image only.
bool Replaces(const Json& fresh, const Json& old) {
  const auto name = [](const Json& entry) {
    const Json* annotations = FindMember(entry, "annotations");
    return annotations == nullptr ? std::string()
                                  : StringMember(*annotations, kRefNameAnnotation).value_or("");
  };
  if (name(fresh) != name(old)) return false;
  return !name(fresh).empty() || old["digest"] == fresh["digest"];
}

void ReplaceEntry(const Json& fresh, Json* index) {
  Json kept = Json::array();
  for (const Json& entry : (*index)["manifests"]) {
    if (!Replaces(fresh, entry)) kept.push_back(entry);
  }
  kept.push_back(fresh);
  (*index)["manifests"] = std::move(kept);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LayoutTarget>> LayoutTarget::Open(const fs::path& layout,
                                                                 std::string ref_name) {
  RETURN_IF_ERROR(MakeLayout(layout));
  return std::unique_ptr<LayoutTarget>(new LayoutTarget(layout, std::move(ref_name)));
}

absl::StatusOr<std::unique_ptr<oci::BlobUpload>> LayoutTarget::StartBlob(
    std::optional<uint64_t> size) {
  ASSIGN_OR_RETURN(const LayoutLock lock, LayoutLock::Take(layout_));
  std::string temporary = (BlobsFolder(layout_) / (std::string(kTemporary) + "XXXXXX")).string();
  UniqueFd fd(mkostemp(temporary.data(), O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, temporary);
  flock(fd.get(), LOCK_EX | LOCK_NB);
  return std::make_unique<FileUpload>(layout_, std::move(fd), std::move(temporary),
                                      size.value_or(0) >= kLargeBlob);
}

absl::StatusOr<bool> LayoutTarget::HasBlob(const oci::Digest& digest, uint64_t size) {
  const absl::StatusOr<std::unique_ptr<FileReader>> file = OpenRegular(BlobPath(layout_, digest));
  if (absl::IsNotFound(file.status())) return false;
  if (!file.ok()) return file.status();
  return (*file)->size() == size;
}

absl::Status LayoutTarget::PutManifest(std::string_view bytes, const std::string& media_type) {
  if (bytes.size() > oci::kMaxManifestBytes)
    return InvalidArgument("manifest of {} bytes, more than the limit of {}", bytes.size(),
                           oci::kMaxManifestBytes);
  oci::Descriptor descriptor;
  descriptor.media_type = media_type;
  descriptor.digest = oci::Digest::Of(AsBytes(bytes));
  descriptor.size = bytes.size();
  if (!ref_name_.empty()) descriptor.annotations[kRefNameAnnotation] = ref_name_;
  ASSIGN_OR_RETURN(const LayoutLock lock, LayoutLock::Take(layout_));
  ASSIGN_OR_RETURN(Json index, ReadIndex(layout_ / "index.json"));
  RETURN_IF_ERROR(WriteFileAtomic(BlobPath(layout_, descriptor.digest), AsBytes(bytes), 0644));
  ReplaceEntry(oci::DescriptorToJson(descriptor), &index);
  return WriteFileAtomic(layout_ / "index.json", AsBytes(DumpJson(index)), 0644);
}

}  // namespace kapsule::content
