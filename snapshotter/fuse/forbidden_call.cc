#include "snapshotter/fuse/forbidden_call.h"

#include <seccomp.h>
#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string_view>

namespace kapsule::fuse {
namespace {

// What the handler needs, made while functions that allocate may be called.
struct Prepared {
  std::array<char[32], 512> names;  // of calls by number, empty where unknown
  long utc_offset;                  // of local time, seconds
  bool with_time;                   // not under journald, as in InitLog()
  std::array<std::atomic<bool>, 512> reported;
};
Prepared prepared;

// Makes the call return -EPERM, which the C library turns into errno.
void Refuse(ucontext_t* context) {
#if defined(__x86_64__)
  context->uc_mcontext.gregs[REG_RAX] = -EPERM;
#elif defined(__aarch64__)
  context->uc_mcontext.regs[0] = static_cast<unsigned long long>(-EPERM);
#else
#error "which register a system call returns in"
#endif
}

// A line on the stack; what is too long is cut.
class Line {
 public:
  void Add(std::string_view text) {
    const size_t n = std::min(text.size(), sizeof(text_) - size_);
    std::memcpy(text_ + size_, text.data(), n);
    size_ += n;
  }
  void Add(int64_t number, size_t digits) {
    char text[24];
    const char* const end = std::to_chars(text, text + sizeof(text), number).ptr;
    for (size_t n = static_cast<size_t>(end - text); n < digits; ++n) Add("0");
    Add(std::string_view(text, static_cast<size_t>(end - text)));
  }
  void Write() const {
    if (write(STDERR_FILENO, text_, size_) < 0) return;  // nobody to tell
  }

 private:
  char text_[256];
  size_t size_ = 0;
};

// As "%Y-%m-%dT%H:%M:%S.%e"; localtime_r(3) takes a lock.
void AddTime(Line& line) {
  namespace chrono = std::chrono;
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  const chrono::sys_seconds local(chrono::seconds(now.tv_sec + prepared.utc_offset));
  const auto day = chrono::floor<chrono::days>(local);
  const chrono::year_month_day date(day);
  const chrono::hh_mm_ss time(local - day);
  line.Add(static_cast<int>(date.year()), 4);
  line.Add("-");
  line.Add(static_cast<unsigned>(date.month()), 2);
  line.Add("-");
  line.Add(static_cast<unsigned>(date.day()), 2);
  line.Add("T");
  line.Add(time.hours().count(), 2);
  line.Add(":");
  line.Add(time.minutes().count(), 2);
  line.Add(":");
  line.Add(time.seconds().count(), 2);
  line.Add(".");
  line.Add(now.tv_nsec / 1'000'000, 3);
}

void Report(size_t number) {
  const char* const name = number < prepared.names.size() ? prepared.names[number] : "";
  Line line;
  if (prepared.with_time) {
    AddTime(line);
    line.Add(" kapsule-fuse ");
  }
  line.Add("error: forbidden system call ");
  line.Add(name[0] != '\0' ? name : "of unknown name");
  line.Add(" (");
  line.Add(static_cast<int64_t>(number), 1);
  line.Add(") refused; further ones are not logged\n");
  line.Write();
}

void OnForbiddenCall(int, siginfo_t* info, void* context) {
  const int error = errno;
  const auto number = static_cast<size_t>(static_cast<unsigned>(info->si_syscall));
  if (number >= prepared.reported.size() || !prepared.reported[number].exchange(true))
    Report(number);
  errno = error;
  Refuse(static_cast<ucontext_t*>(context));
}

}  // namespace

absl::Status ReportForbiddenCalls() {
  for (size_t i = 0; i < prepared.names.size(); ++i) {
    char* const name = seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, static_cast<int>(i));
    if (name == nullptr) continue;
    std::strncpy(prepared.names[i], name, sizeof(prepared.names[i]) - 1);
    std::free(name);
  }
  const time_t now = time(nullptr);
  tm local{};
  localtime_r(&now, &local);
  prepared.utc_offset = local.tm_gmtoff;
  prepared.with_time = std::getenv("JOURNAL_STREAM") == nullptr;
  struct sigaction action {};
  action.sa_sigaction = OnForbiddenCall;
  action.sa_flags = SA_SIGINFO;
  if (sigaction(SIGSYS, &action, nullptr) != 0) return ErrnoStatus(errno, "sigaction");
  return absl::OkStatus();
}

}  // namespace kapsule::fuse
