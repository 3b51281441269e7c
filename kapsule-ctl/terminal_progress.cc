#include "kapsule-ctl/terminal_progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "core/base/printable.h"
#include "kapsule-ctl/units.h"

namespace kapsule::ctl {
namespace {
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

class NoProgress final : public image::Progress {
 public:
  void StartLayer(size_t, size_t, const std::string&, uint64_t) override {}
  void Advance(uint64_t) override {}
  void FinishLayer() override {}
};

// Counts the bytes of the current layer and knows when to show them again.
class LineProgress : public image::Progress {
 public:
  explicit LineProgress(milliseconds interval) : interval_(interval) {}

  void StartLayer(size_t number, size_t count, const std::string& title, uint64_t size) override {
    number_ = number, count_ = count, title_ = Printable(title), size_ = size, done_ = 0;
    start_ = shown_ = Clock::now();
    ShowStart();
  }

  void Advance(uint64_t bytes) override {
    done_ += bytes;
    if (Clock::now() - shown_ < interval_) return;
    shown_ = Clock::now();
    Show(Line());
  }

  void FinishLayer() override { ShowEnd(Line()); }

 protected:
  virtual void ShowStart() {}
  virtual void Show(const std::string& line) = 0;
  virtual void ShowEnd(const std::string& line) = 0;
  std::string Line() const {
    return ProgressLine(number_, count_, title_, done_, size_,
                        std::chrono::duration_cast<milliseconds>(Clock::now() - start_));
  }

 private:
  const milliseconds interval_;
  size_t number_ = 0, count_ = 0;
  std::string title_;
  uint64_t size_ = 0, done_ = 0;
  Clock::time_point start_, shown_;
};

class PlainProgress final : public LineProgress {
 public:
  PlainProgress() : LineProgress(milliseconds(5000)) {}

 private:
  void Show(const std::string& line) override { fmt::print(stderr, "{}\n", line); }
  void ShowEnd(const std::string& line) override { fmt::print(stderr, "{}\n", line); }
};

class TtyProgress final : public LineProgress {
 public:
  TtyProgress() : LineProgress(milliseconds(100)) {}
  ~TtyProgress() override {
    if (open_) fmt::print(stderr, "\n");  // an error's text starts on a line of its own
  }

 private:
  void ShowStart() override { Show(Line()); }
  void Show(const std::string& line) override {
    winsize window = {};
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &window) != 0 || window.ws_col < 20) window.ws_col = 80;
    fmt::print(stderr, "\r{}\x1b[K", line.substr(0, window.ws_col - 1u));
    std::fflush(stderr);
    open_ = true;
  }
  void ShowEnd(const std::string& line) override {
    Show(line);
    fmt::print(stderr, "\n");
    open_ = false;
  }

  bool open_ = false;
};

}  // namespace

std::string ProgressLine(size_t number, size_t count, const std::string& title, uint64_t done,
                         uint64_t size, milliseconds elapsed) {
  const uint64_t shown = std::min(done, size);
  const double percent = size == 0 ? 100.0 : 100.0 * static_cast<double>(shown) / size;
  std::string line = fmt::format("[{}/{}] {}  {:3.0f}%  {} of {}", number, count, title,
                                 done < size ? std::min(percent, 99.0) : percent,
                                 FormatBytes(shown), FormatBytes(size));
  if (elapsed < milliseconds(200) || shown == 0) return line;  // no rate worth showing
  const double rate = static_cast<double>(shown) * 1000 / static_cast<double>(elapsed.count());
  line += fmt::format("  {}/s", FormatBytes(static_cast<uint64_t>(rate)));
  if (shown < size)
    line +=
        fmt::format("  {} left", FormatSeconds(static_cast<uint64_t>((size - shown) / rate + 0.5)));
  return line;
}

std::unique_ptr<image::Progress> MakeProgress(const std::string& style) {
  if (style == "none") return std::make_unique<NoProgress>();
  if (style == "tty" || (style == "auto" && isatty(STDERR_FILENO)))
    return std::make_unique<TtyProgress>();
  return std::make_unique<PlainProgress>();
}

}  // namespace kapsule::ctl
