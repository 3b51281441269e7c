#include "snapshotter/test_view.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "core/base/file.h"

namespace kapsule::snapshotter {

absl::Status MakeErofsImage(const std::filesystem::path& image, const std::string& content) {
  const std::filesystem::path tree = image.string() + ".tree";
  RETURN_IF_ERROR(MakeDirs(tree, 0755));
  RETURN_IF_ERROR(WriteFileAtomic(tree / "hello", AsBytes(content), 0444));
  std::string words[] = {"mkfs.erofs", image, tree};
  char* const argv[] = {words[0].data(), words[1].data(), words[2].data(), nullptr};
  posix_spawn_file_actions_t quiet;
  posix_spawn_file_actions_init(&quiet);
  posix_spawn_file_actions_addopen(&quiet, 1, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_adddup2(&quiet, 1, 2);
  pid_t pid = -1;
  const int error = posix_spawnp(&pid, argv[0], &quiet, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&quiet);
  if (error != 0) return ErrnoStatus(error, "mkfs.erofs");
  int state = 0;
  waitpid(pid, &state, 0);
  RETURN_IF_ERROR(RemoveTree(tree));
  return state == 0 ? absl::OkStatus() : Internal("mkfs.erofs failed");
}

bool IsErofsMount(const std::filesystem::path& path) {
  struct stat here, above;
  struct statfs file_system;
  return stat(path.c_str(), &here) == 0 && stat(path.parent_path().c_str(), &above) == 0 &&
         here.st_dev != above.st_dev && statfs(path.c_str(), &file_system) == 0 &&
         file_system.f_type == EROFS_SUPER_MAGIC_V1;
}

}  // namespace kapsule::snapshotter
