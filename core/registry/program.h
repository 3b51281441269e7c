// Small programs that are asked for credentials: text in, text out, no shell.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/base/status.h"

namespace kapsule::registry {

struct Program {
  std::string file;  // looked for in PATH where it has no '/'
  std::vector<std::string> arguments;
  // In place of variables of these names in our own environment.
  std::vector<std::pair<std::string, std::string>> environment;
  std::chrono::milliseconds timeout;
  size_t max_output;
  std::function<bool()> stopped = nullptr;  // asked some ten times a second
};

struct ProgramOutput {
  bool succeeded = false;  // ended by itself with 0
  std::string text;        // what it wrote to its standard output
};

// Runs it with `input` (at most 4096 bytes, which fit a pipe without a reader)
// as its standard input; its standard error goes nowhere. Ended and reaped at
// the latest on return. Errors hold nothing of what it wrote.
//   FailedPrecondition  cannot be started
//   InvalidArgument     input or output too long
//   DeadlineExceeded    not at its end after `timeout`
//   Cancelled           `stopped` said so
absl::StatusOr<ProgramOutput> RunProgram(const Program& program, const std::string& input);

}  // namespace kapsule::registry
