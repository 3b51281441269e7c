#include "core/containerd/testing.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "core/base/file.h"
#include "core/base/unix_socket.h"

namespace kapsule::containerd {
namespace fs = std::filesystem;
namespace {

// Starts a program from PATH with stdout and stderr in `log`.
absl::StatusOr<pid_t> Spawn(std::vector<std::string> command, const fs::path& log) {
  std::vector<char*> argv;
  for (std::string& word : command) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  pid_t pid = -1;
  const int error = posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return ErrnoStatus(error, command[0]);
  return pid;
}

std::string Config(const fs::path& dir, const std::string& more) {
  return fmt::format(R"(version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{0}/containerd.sock"
[ttrpc]
  address = "{0}/containerd.ttrpc.sock"
{1}
)",
                     dir.string(), more);
}

absl::Status Put(const fs::path& path, std::string_view bytes) {
  return WriteFileAtomic(path, AsBytes(bytes), 0600);
}

absl::StatusOr<oci::Descriptor> PutBlob(const fs::path& layout, std::string_view bytes,
                                        const std::string& media_type) {
  oci::Descriptor descriptor;
  descriptor.media_type = media_type;
  descriptor.digest = oci::Digest::Of(AsBytes(bytes));
  descriptor.size = bytes.size();
  RETURN_IF_ERROR(Put(layout / "blobs/sha256" / descriptor.digest.hex(), bytes));
  return descriptor;
}

absl::StatusOr<oci::Descriptor> PutImage(const fs::path& layout,
                                         const std::vector<TestLayer>& layers, TestImage* image) {
  Json config = {{"architecture", "amd64"},
                 {"os", "linux"},
                 {"config", Json::object()},
                 {"rootfs", {{"type", "layers"}, {"diff_ids", Json::array()}}}};
  oci::Manifest manifest;
  std::vector<oci::Digest> diff_ids;
  for (const TestLayer& layer : layers) {
    ASSIGN_OR_RETURN(oci::Descriptor descriptor, PutBlob(layout, layer.bytes, layer.media_type));
    descriptor.annotations = layer.annotations;
    diff_ids.push_back(layer.diff_id.value_or(descriptor.digest));
    config["rootfs"]["diff_ids"].push_back(diff_ids.back().text());
    manifest.layers.push_back(std::move(descriptor));
  }
  ASSIGN_OR_RETURN(manifest.config, PutBlob(layout, DumpJson(config), oci::kConfigType));
  ASSIGN_OR_RETURN(oci::Descriptor target,
                   PutBlob(layout, oci::SerializeManifest(manifest), oci::kManifestType));
  *image = {target.digest, manifest.layers, oci::ChainIds(diff_ids)};
  return target;
}

Json IndexOf(const std::vector<oci::Descriptor>& manifests) {
  Json index = {{"schemaVersion", 2}, {"mediaType", oci::kIndexType}, {"manifests", Json::array()}};
  for (const oci::Descriptor& manifest : manifests)
    index["manifests"].push_back(oci::DescriptorToJson(manifest));
  return index;
}

absl::StatusOr<oci::Descriptor> PutIndex(const fs::path& layout, oci::Descriptor manifest) {
  oci::Descriptor missing = manifest;
  missing.digest = oci::Digest::Of(AsBytes("no such manifest"));
  missing.os = manifest.os = "linux";
  missing.architecture = "arm64";
  manifest.architecture = "amd64";
  return PutBlob(layout, DumpJson(IndexOf({missing, manifest})), oci::kIndexType);
}

}  // namespace

absl::StatusOr<std::unique_ptr<TestContainerd>> TestContainerd::Start(const std::string& config) {
  std::string pattern = fs::temp_directory_path() / "kapsule-containerd-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr) return ErrnoStatus(errno, pattern);
  std::unique_ptr<TestContainerd> result(new TestContainerd(pattern));
  RETURN_IF_ERROR(Put(result->dir() / "config.toml", Config(result->dir(), config)));
  RETURN_IF_ERROR(result->Restart());
  return result;
}

absl::Status TestContainerd::Restart() {
  Stop();
  ASSIGN_OR_RETURN(pid_, Spawn({"containerd", "--config", dir_ / "config.toml"}, dir_ / "log"));
  for (int i = 0; i < 1500; ++i) {
    if (Ctr({"namespaces", "list"}).ok()) return absl::OkStatus();
    usleep(20'000);
  }
  return Unavailable("containerd did not start; its log is in {}", dir_.string());
}

void TestContainerd::Stop() {
  if (pid_ < 0) return;
  kill(pid_, SIGTERM);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

TestContainerd::~TestContainerd() {
  Stop();
  RemoveTree(dir_).IgnoreError();
}

absl::Status TestContainerd::Ctr(std::vector<std::string> arguments) const {
  std::vector<std::string> command = {"ctr", "-a", socket()};
  command.insert(command.end(), arguments.begin(), arguments.end());
  const fs::path log = dir_ / "ctr.log";
  RETURN_IF_ERROR(Put(log, ""));
  ASSIGN_OR_RETURN(const pid_t pid, Spawn(command, log));
  int state = 0;
  waitpid(pid, &state, 0);
  if (state == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string output, ReadFile(log, 1 << 20));
  return Internal("ctr {} failed: {}", fmt::join(arguments, " "), output);
}

std::string OneFileTar(const std::string& name, const std::string& content) {
  std::string header(512, '\0');
  const auto set = [&header](size_t at, const std::string& text) {
    header.replace(at, text.size(), text);
  };
  set(0, name);
  set(100, "0000644");
  set(108, "0000000");
  set(116, "0000000");
  set(124, fmt::format("{:011o}", content.size()));
  set(136, "00000000000");
  set(148, "        ");
  set(156, "0");
  set(257, std::string("ustar\00000", 8));
  unsigned sum = 0;
  for (const char c : header) sum += static_cast<unsigned char>(c);
  set(148, fmt::format("{:06o}", sum) + std::string("\0 ", 2));
  std::string tar = header + content;
  tar.resize(AlignUp(tar.size(), 512) + 1024, '\0');
  return tar;
}

absl::StatusOr<TestImage> ImportImage(const TestContainerd& containerd, const std::string& ns,
                                      const std::string& name, const std::vector<TestLayer>& layers,
                                      bool in_index) {
  const fs::path layout = containerd.dir() / "layout";
  const fs::path tar = containerd.dir() / "layout.tar";
  RETURN_IF_ERROR(RemoveTree(layout));
  RETURN_IF_ERROR(MakeDirs(layout / "blobs/sha256", 0700));
  TestImage image;
  ASSIGN_OR_RETURN(oci::Descriptor target, PutImage(layout, layers, &image));
  if (in_index) {
    ASSIGN_OR_RETURN(target, PutIndex(layout, target));
  }
  target.annotations = {{"io.containerd.image.name", name}};
  RETURN_IF_ERROR(Put(layout / "index.json", DumpJson(IndexOf({target}))));
  RETURN_IF_ERROR(Put(layout / "oci-layout", R"({"imageLayoutVersion":"1.0.0"})"));
  ASSIGN_OR_RETURN(const pid_t pid, Spawn({"tar", "-C", layout, "-cf", tar, "."}, layout / "log"));
  int state = 0;
  waitpid(pid, &state, 0);
  if (state != 0) return Internal("tar failed");
  RETURN_IF_ERROR(containerd.Ctr({"-n", ns, "images", "import", "--no-unpack", tar.string()}));
  RETURN_IF_ERROR(RemoveTree(layout));
  return image;
}

}  // namespace kapsule::containerd
