#include "kapsule-ctl/terminal_progress.h"

#include <gtest/gtest.h>

namespace kapsule::ctl {
namespace {
using std::chrono::milliseconds;

TEST(ProgressLineTest, SaysHowMuchHowFastAndHowLong) {
  EXPECT_EQ(ProgressLine(2, 4, "model.gguf", 1 << 30, uint64_t{3} << 30, milliseconds(2000)),
            "[2/4] model.gguf   33%  1.0 GiB of 3.0 GiB  512.0 MiB/s  4s left");
}

TEST(ProgressLineTest, AnEndHasNoTimeLeft) {
  EXPECT_EQ(ProgressLine(4, 4, "config", 1 << 20, 1 << 20, milliseconds(1000)),
            "[4/4] config  100%  1.0 MiB of 1.0 MiB  1.0 MiB/s");
}

TEST(ProgressLineTest, NeverSays100PercentTooEarlyNorMore) {
  EXPECT_EQ(ProgressLine(1, 1, "x", 999'999, 1'000'000, milliseconds(0)),
            "[1/1] x   99%  976.6 KiB of 976.6 KiB");
  EXPECT_EQ(ProgressLine(1, 1, "x", 2000, 1000, milliseconds(0)),
            "[1/1] x  100%  1000 B of 1000 B");
  EXPECT_EQ(ProgressLine(1, 1, "x", 0, 0, milliseconds(5000)), "[1/1] x  100%  0 B of 0 B");
}

TEST(TerminalProgressTest, PlainWritesALineForEachLayer) {
  testing::internal::CaptureStderr();
  const auto progress = MakeProgress("plain");
  for (size_t layer = 1; layer <= 2; ++layer) {
    progress->StartLayer(layer, 2, "a\nb", 100);
    progress->Advance(50);
    progress->Advance(50);
    progress->FinishLayer();
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "[1/2] a?b  100%  100 B of 100 B\n[2/2] a?b  100%  100 B of 100 B\n");
}

TEST(TerminalProgressTest, TtyDrawsOneLineAgainAndEndsIt) {
  testing::internal::CaptureStderr();
  auto progress = MakeProgress("tty");
  progress->StartLayer(1, 1, "a", 100);
  progress->Advance(100);
  progress->FinishLayer();
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "\r[1/1] a    0%  0 B of 100 B\x1b[K\r[1/1] a  100%  100 B of 100 B\x1b[K\n");
}

TEST(TerminalProgressTest, AnUnfinishedTtyLineIsEnded) {
  testing::internal::CaptureStderr();
  auto progress = MakeProgress("tty");
  progress->StartLayer(1, 1, "a", 100);
  progress.reset();
  EXPECT_EQ(testing::internal::GetCapturedStderr().back(), '\n');
}

TEST(TerminalProgressTest, NoneIsSilent) {
  testing::internal::CaptureStderr();
  const auto progress = MakeProgress("none");
  progress->StartLayer(1, 1, "a", 100);
  progress->Advance(100);
  progress->FinishLayer();
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace kapsule::ctl
