// How long a layer takes from its blob to a mounted tree, by its size: sparse
// layers of 1 MiB, 1 GiB and 1 TiB, each opened by a real kapsule-fuse, mounted as
// EROFS and read once, in turns. A line of JSON for each.
//
// Usage: mount_timer FOLDER PROGRAMS KEYPROVIDER_SOCKET PUBLIC_KEY UID ROUNDS
#include <absl/time/clock.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>

#include "core/base/log.h"
#include "core/blob/sparse_layer.h"
#include "core/crypt/keys.h"
#include "core/crypt/keywrap_jwe.h"
#include "core/mounts/erofs_mount.h"
#include "snapshotter/data_plane.h"

namespace kapsule {
namespace {
namespace fs = std::filesystem;

constexpr char kFile[] = "weights";
constexpr size_t kFirstBytes = 64;
constexpr auto kTimeout = absl::Seconds(20);

struct Layer {
  std::string size;
  fs::path blob;
  uint64_t blob_size = 0;
  oci::Digest digest;
  oci::Annotations annotations;
};

absl::StatusOr<Layer> MakeLayer(const fs::path& folder, const std::string& name, uint64_t size,
                                const crypt::Key& recipient) {
  Layer layer;
  layer.size = name;
  layer.blob = folder / ("layer-" + std::to_string(size));
  const blob::SparseLayer sparse = blob::WriteSparseLayer(layer.blob, {{kFile, size, {0}}});
  layer.blob_size = sparse.size;
  layer.digest = oci::Digest::Of(AsBytes(layer.blob.string()));
  crypt::PrivateOptions options;
  options.key = sparse.layer.key.Clone();
  options.index = sparse.layer.ref;
  ASSIGN_OR_RETURN(layer.annotations,
                   crypt::WrapLayer(options, crypt::PublicOptions(), {&recipient, 1}));
  layer.annotations[oci::kIndexAnnotation] = sparse.layer.ref.ToJson();
  return layer;
}

absl::Status ReadFirstPage(const fs::path& file) {
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenFile(file, O_RDONLY));
  char buffer[kFirstBytes];
  if (pread(fd.get(), buffer, sizeof(buffer), 0) != sizeof(buffer))
    return ErrnoStatus(errno, "read " + file.string());
  return absl::OkStatus();
}

struct Times {
  absl::Duration mounted, read;  // since the start
};

absl::StatusOr<Times> Mount(snapshotter::DataPlane& plane, ErofsMounter& mounter,
                            const Layer& layer, const fs::path& target) {
  ASSIGN_OR_RETURN(UniqueFd blob, OpenFile(layer.blob, O_RDONLY | O_DIRECT));
  const absl::Time start = absl::Now();
  ASSIGN_OR_RETURN(const fs::path view,
                   plane.Open(layer.digest, layer.blob_size, true, std::move(blob),
                              layer.annotations, start + kTimeout));
  RETURN_IF_ERROR(mounter.Mount(view, target));
  Times times;
  times.mounted = absl::Now() - start;
  const absl::Status read = ReadFirstPage(target / kFile);
  times.read = absl::Now() - start;
  RETURN_IF_ERROR(UnmountErofs(target));
  RETURN_IF_ERROR(plane.Close(layer.digest, absl::Now() + kTimeout));
  RETURN_IF_ERROR(read);
  return times;
}

absl::Status Run(char** argv) {
  RETURN_IF_ERROR(InitLog("mount_timer", "error"));
  const fs::path folder = argv[1];
  ASSIGN_OR_RETURN(const crypt::Key recipient, crypt::LoadPublicKey(argv[4]));
  std::vector<Layer> layers;
  for (const auto& [name, bits] : {std::pair("1 MiB", 20), {"1 GiB", 30}, {"1 TiB", 40}}) {
    ASSIGN_OR_RETURN(layers.emplace_back(),
                     MakeLayer(folder, name, uint64_t{1} << bits, recipient));
  }
  RETURN_IF_ERROR(MakeDirs(folder / "target", 0700));
  const auto uid = static_cast<uid_t>(std::stoul(argv[5]));
  snapshotter::DataPlane::Options options;
  options.views = folder / "views";
  options.program = fs::path(argv[2]) / "kapsule-fuse";
  options.holder_program = fs::path(argv[2]) / "kapsule-holder";
  options.holder_socket = folder / "holder.sock";
  options.uid = uid;
  options.gid = uid;
  options.keyprovider_socket = argv[3];
  ASSIGN_OR_RETURN(const std::unique_ptr<snapshotter::DataPlane> plane,
                   snapshotter::DataPlane::Start(std::move(options)));
  ErofsMounter mounter;
  for (int round = 0; round < std::stoi(argv[6]); ++round) {
    for (const Layer& layer : layers) {
      ASSIGN_OR_RETURN(const Times times, Mount(*plane, mounter, layer, folder / "target"));
      std::printf("{\"size\":\"%s\",\"round\":%d,\"mount_ms\":%.3f,\"first_read_ms\":%.3f}\n",
                  layer.size.c_str(), round, absl::ToDoubleMilliseconds(times.mounted),
                  absl::ToDoubleMilliseconds(times.read));
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace kapsule

int main(int argc, char** argv) {
  if (argc != 7) {
    std::fputs("usage: mount_timer FOLDER PROGRAMS KEYPROVIDER_SOCKET PUBLIC_KEY UID ROUNDS\n",
               stderr);
    return 2;
  }
  const absl::Status status = kapsule::Run(argv);
  if (!status.ok()) std::fprintf(stderr, "mount_timer: %s\n", kapsule::Message(status).c_str());
  return status.ok() ? 0 : 1;
}
