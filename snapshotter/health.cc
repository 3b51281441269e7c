#include <absl/time/clock.h>

#include "core/base/printable.h"
#include "snapshotter/metrics.h"

namespace kapsule::snapshotter {
namespace {

constexpr absl::Duration kMetadataPause = absl::Seconds(5), kSlowWrite = absl::Seconds(2);
constexpr absl::Duration kFetchTime = absl::Seconds(1);
constexpr char kMetricsType[] = "text/plain; version=0.0.4; charset=utf-8";

void Add(Health::Report& report, const char* name, const absl::Status& status) {
  if (status.ok()) {
    report.text += fmt::format("ok {}\n", name);
    return;
  }
  report.well = false;
  report.text += fmt::format("bad {}: {}\n", name, Printable(Message(status)));
}

HttpReply Answer(const std::string& path, const Metrics& metrics, Health& health,
                 const MetricSources& sources) {
  if (path == "/metrics") return {200, metrics.Text(sources), kMetricsType};
  if (path != "/healthz") return {404, "here are /metrics and /healthz\n"};
  const Health::Report report = health.Check(sources, absl::Now());
  return {report.well ? 200 : 503, report.text};
}

}  // namespace

Health::Report Health::Check(const MetricSources& sources, absl::Time now) {
  Report report;
  const DataPlaneStatus plane = sources.data_plane();
  Add(report, "data plane",
      plane.serving ? absl::OkStatus() : Unavailable("kapsule-fuse does not serve"));
  Add(report, "failover",
      plane.failover ? absl::OkStatus()
                     : Unavailable("when kapsule-fuse ends, containers that read get errors"));
  Add(report, "fetcher", sources.fetch(absl::Now() + kFetchTime).status());
  Add(report, "metadata", MetadataStatus(sources, now));
  return report;
}

absl::Status Health::MetadataStatus(const MetricSources& sources, absl::Time now) {
  {
    const absl::MutexLock lock(&mu_);
    if (trying_) {
      if (now - tried_ < kSlowWrite) return metadata_;
      return Unavailable("a write has not ended for {} s", absl::ToInt64Seconds(now - tried_));
    }
    if (now - tried_ < kMetadataPause) return metadata_;
    trying_ = true;
    tried_ = now;
  }
  const absl::Status written = sources.write_metadata();
  const absl::MutexLock lock(&mu_);
  trying_ = false;
  return metadata_ = written;
}

absl::StatusOr<std::unique_ptr<HttpListener>> ServeMetrics(const ListenAddress& address,
                                                           const Metrics& metrics,
                                                           MetricSources sources) {
  const auto health = std::make_shared<Health>();
  return HttpListener::Start(
      address, [&metrics, health, sources = std::move(sources)](const std::string& path) {
        return Answer(path, metrics, *health, sources);
      });
}

}  // namespace kapsule::snapshotter
