#include "core/base/log.h"

#include <spdlog/sinks/stdout_sinks.h>

#include <cstdlib>

namespace kapsule {

absl::Status InitLog(const std::string& program, const std::string& level) {
  const spdlog::level::level_enum chosen = spdlog::level::from_str(level);
  if (chosen == spdlog::level::off && level != "off")
    return InvalidArgument("log level \"{}\": use trace, debug, info, warning or error", level);
  auto logger =
      std::make_shared<spdlog::logger>(program, std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_level(chosen);
  logger->flush_on(spdlog::level::trace);
  // journald adds time and program itself.
  logger->set_pattern(std::getenv("JOURNAL_STREAM") != nullptr ? "%l: %v"
                                                               : "%Y-%m-%dT%H:%M:%S.%e %n %l: %v");
  spdlog::set_default_logger(std::move(logger));
  return absl::OkStatus();
}

}  // namespace kapsule
