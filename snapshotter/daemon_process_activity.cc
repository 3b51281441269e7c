#include "snapshotter/daemon_process_activity.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_split.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "core/base/proc_file.h"

namespace kapsule::snapshotter {
namespace {

namespace fs = std::filesystem;

// proc(5): the state is the third field, utime and stime are the 14th and 15th.
constexpr size_t kState = 0, kUserTicks = 11, kSystemTicks = 12;  // after the name

absl::StatusOr<ProcessActivity> OfThread(const fs::path& folder) {
  const std::string text = ReadProcFile(folder / "stat");
  const size_t name_end = text.rfind(") ");  // a name may hold anything
  if (name_end == std::string::npos) return NotFound("{} tells nothing", folder.string());
  const std::vector<std::string> fields = absl::StrSplit(text.substr(name_end + 2), ' ');
  uint64_t user = 0, system = 0;
  if (fields.size() <= kSystemTicks || !absl::SimpleAtoi(fields[kUserTicks], &user) ||
      !absl::SimpleAtoi(fields[kSystemTicks], &system))
    return Internal("{}/stat is not what proc(5) says", folder.string());
  const std::string& state = fields[kState];
  ProcessActivity activity;
  activity.all = {state == "R" || state == "D", user + system};
  activity.traced = state == "t";
  return activity;
}

bool HasTracer(const fs::path& folder) {
  std::ifstream in(folder / "status");
  for (std::string word; in >> word;)
    if (word == "TracerPid:") return in >> word && word != "0";
  return false;
}

}  // namespace

absl::StatusOr<ProcessActivity> ActivityOf(pid_t pid) {
  const fs::path folder = fmt::format("/proc/{}", pid);
  ASSIGN_OR_RETURN(const ProcessActivity first, OfThread(folder / "task" / std::to_string(pid)));
  ProcessActivity activity;
  activity.main = first.all;
  activity.traced = HasTracer(folder);
  std::error_code error;
  for (fs::directory_iterator it(folder / "task", error), end; !error && it != end;
       it.increment(error)) {
    const absl::StatusOr<ProcessActivity> thread = OfThread(it->path());
    if (!thread.ok()) continue;  // it has ended
    activity.all.working |= thread->all.working;
    activity.all.ticks += thread->all.ticks;
    activity.traced |= thread->traced;
  }
  if (error) return ErrnoStatus(error.value(), folder.string());
  return activity;
}

}  // namespace kapsule::snapshotter
