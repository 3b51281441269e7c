#include "snapshotter/process_facts.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <system_error>
#include <vector>

#include "core/base/proc_file.h"

namespace kapsule::snapshotter {
namespace {

// Numbers of proc(5), /proc/PID/stat; the first word after the name is number 3.
enum Field { kUserTime = 14, kSystemTime = 15, kThreads = 20, kStart = 22, kResident = 24 };

double BootTime() {
  std::ifstream file("/proc/stat");
  for (std::string word; file >> word;) {
    double seconds = 0;
    if (word == "btime" && file >> seconds) return seconds;
  }
  return 0;
}

}  // namespace

absl::StatusOr<ProcessFacts> FactsOf(pid_t pid) {
  const std::filesystem::path folder = fmt::format("/proc/{}", pid);
  const std::string text = ReadProcFile(folder / "stat");
  const size_t name_end = text.rfind(')');  // a name may have blanks and parentheses
  if (pid <= 0 || name_end == std::string::npos) return NotFound("process {}", pid);
  std::istringstream rest(text.substr(name_end + 1));
  std::string state;
  std::vector<double> numbers(4);
  rest >> state;
  for (double number; rest >> number;) numbers.push_back(number);
  if (numbers.size() <= kResident) return NotFound("process {}", pid);
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  ProcessFacts facts;
  facts.cpu_seconds = (numbers[kUserTime] + numbers[kSystemTime]) / ticks;
  facts.resident_bytes = numbers[kResident] * static_cast<double>(sysconf(_SC_PAGESIZE));
  facts.start_seconds = BootTime() + numbers[kStart] / ticks;
  facts.threads = numbers[kThreads];
  std::error_code error;
  for (std::filesystem::directory_iterator fd(folder / "fd", error), end; !error && fd != end;
       fd.increment(error))
    ++facts.open_files;
  return facts;
}

}  // namespace kapsule::snapshotter
