// A build's progress on stderr.
#pragma once

#include <chrono>
#include <memory>

#include "core/image/progress.h"

namespace kapsule::ctl {

// Styles: "tty" draws one line again and again, ten times a second at most;
// "plain" writes a line for each layer, and one each few seconds; "auto" is
// "tty" where stderr is a terminal, else "plain"; "none" is silent.
std::unique_ptr<image::Progress> MakeProgress(const std::string& style);

// "[2/4] model.gguf  45%  1.2 GiB of 2.7 GiB  512.0 MiB/s  3s left"
std::string ProgressLine(size_t number, size_t count, const std::string& title, uint64_t done,
                         uint64_t size, std::chrono::milliseconds elapsed);

}  // namespace kapsule::ctl
