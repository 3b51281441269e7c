#include "core/mounts/test_view.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>

#include "core/base/file.h"

namespace kapsule {
namespace fs = std::filesystem;

absl::Status MakeErofsImage(const fs::path& image, const std::string& content) {
  const fs::path tree = image.string() + ".tree";
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

std::vector<fs::path> LoopsWith(const std::string& part) {
  std::vector<fs::path> loops;
  for (const auto& entry : fs::directory_iterator("/sys/block")) {
    std::ifstream file(entry.path() / "loop/backing_file");
    std::string backing;
    if (std::getline(file, backing) && backing.find(part) != std::string::npos)
      loops.push_back(entry.path());
  }
  return loops;
}

}  // namespace kapsule
