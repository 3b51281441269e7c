#include "snapshotter/metrics.h"

#include <absl/time/clock.h>
#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/text_serializer.h>
#include <unistd.h>

#include <sstream>

#include "snapshotter/process_facts.h"

namespace kapsule::snapshotter {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

constexpr absl::Duration kFetchTime = absl::Seconds(1);

const prometheus::Histogram::BucketBoundaries& OpenBounds() {
  static const auto* const bounds = new prometheus::Histogram::BucketBoundaries{
      0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30};
  return *bounds;
}
const prometheus::Histogram::BucketBoundaries& RpcBounds() {
  static const auto* const bounds = new prometheus::Histogram::BucketBoundaries{
      0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10};
  return *bounds;
}

// "PERMISSION_DENIED". absl and gRPC number and name their codes alike.
std::string NameOf(absl::StatusCode code) { return std::string(absl::StatusCodeToString(code)); }

// Families of the moment, in the order in which they are added.
class Moment {
 public:
  using Samples = std::map<std::string, double>;

  void Add(MetricType type, const char* name, const char* help, double value) {
    Family(type, name, help).metric.push_back(Sample(type, value));
  }
  // A sample for each value of `label`.
  void Add(MetricType type, const char* name, const char* help, const char* label,
           const Samples& samples) {
    MetricFamily& family = Family(type, name, help);
    for (const auto& [value, number] : samples) {
      ClientMetric sample = Sample(type, number);
      sample.label = {{label, value}};
      family.metric.push_back(std::move(sample));
    }
  }
  void Gauge(const char* name, const char* help, double value) {
    Add(MetricType::Gauge, name, help, value);
  }
  void Counter(const char* name, const char* help, double value) {
    Add(MetricType::Counter, name, help, value);
  }
  std::vector<MetricFamily> Take() { return std::move(families_); }

 private:
  MetricFamily& Family(MetricType type, const char* name, const char* help) {
    return families_.emplace_back(MetricFamily{name, help, type, {}});
  }
  static ClientMetric Sample(MetricType type, double value) {
    ClientMetric sample;
    (type == MetricType::Counter ? sample.counter.value : sample.gauge.value) = value;
    return sample;
  }
  std::vector<MetricFamily> families_;
};

void AddDataPlane(Moment& moment, const DataPlaneStatus& status) {
  moment.Gauge("kapsule_data_plane_serving", "Whether kapsule-fuse answers", status.serving);
  moment.Gauge("kapsule_data_plane_failover", "Whether a successor of kapsule-fuse could take over",
               status.failover);
  moment.Gauge("kapsule_data_plane_views", "Layers that kapsule-fuse has open",
               static_cast<double>(status.views));
  moment.Counter("kapsule_data_plane_takeovers_total", "Successions of kapsule-fuse, upgrades too",
                 static_cast<double>(status.takeovers));
  moment.Gauge("kapsule_data_plane_last_stall_seconds",
               "How long the last succession kept readers waiting",
               absl::ToDoubleSeconds(status.last_stall));
}

struct FetchField {
  MetricType type;
  const char *name, *help;
  uint64_t (v1::FetchStats::*value)() const;
};
constexpr FetchField kFetchFields[] = {
    {MetricType::Counter, "kapsule_fetch_bytes_total", "Bytes of bodies from registries",
     &v1::FetchStats::bytes_fetched},
    {MetricType::Counter, "kapsule_fetch_blocks_total", "Blocks fetched, checked and cached",
     &v1::FetchStats::blocks_fetched},
    {MetricType::Counter, "kapsule_fetch_blocks_refused_total",
     "Blocks that came with another digest", &v1::FetchStats::blocks_refused},
    {MetricType::Counter, "kapsule_fetch_failures_total",
     "Blocks that reads wanted and that failed", &v1::FetchStats::failures},
    {MetricType::Counter, "kapsule_fetch_retries_total", "Ranges asked for again",
     &v1::FetchStats::retries},
    {MetricType::Counter, "kapsule_fetch_suspect_blocks_total", "Cached blocks checked again",
     &v1::FetchStats::suspects},
    {MetricType::Counter, "kapsule_fetch_mended_blocks_total",
     "Cached blocks that were damaged, and fetched again", &v1::FetchStats::mended},
    {MetricType::Counter, "kapsule_fetch_evicted_bytes_total", "Bytes evicted from the cache",
     &v1::FetchStats::evicted_bytes},
    {MetricType::Counter, "kapsule_fetch_auth_refreshes_total", "Tokens asked for again",
     &v1::FetchStats::auth_refreshes},
    {MetricType::Gauge, "kapsule_fetch_cache_bytes", "Bytes in the cache",
     &v1::FetchStats::cache_bytes},
    {MetricType::Gauge, "kapsule_fetch_cached_blobs", "Blobs in the cache",
     &v1::FetchStats::cached_blobs},
    {MetricType::Gauge, "kapsule_fetch_open_blobs", "Blobs read from registries now",
     &v1::FetchStats::open_blobs},
    {MetricType::Gauge, "kapsule_fetch_waiting_blocks", "Blocks that reads wait for now",
     &v1::FetchStats::waiting_blocks},
};

// Where kapsule-fetch does not answer, its numbers are missing.
void AddFetch(Moment& moment, const absl::StatusOr<v1::FetchStats>& stats) {
  moment.Gauge("kapsule_fetch_up", "Whether kapsule-fetch answers", stats.ok());
  if (!stats.ok()) return;
  for (const FetchField& field : kFetchFields)
    moment.Add(field.type, field.name, field.help, static_cast<double>((*stats.*field.value)()));
  moment.Add(MetricType::Counter, "kapsule_fetch_wanted_blocks_total",
             "Blocks that reads wanted, by where they were", "from",
             {{"cache", static_cast<double>(stats->wanted_there())},
              {"registry", static_cast<double>(stats->wanted_fetched())}});
}

void AddSnapshots(Moment& moment, const absl::StatusOr<std::map<Kind, size_t>>& counts) {
  if (!counts.ok()) return;
  Moment::Samples samples = {{"active", 0}, {"committed", 0}, {"view", 0}};
  for (const auto& [kind, count] : *counts)
    samples[kind == Kind::kActive ? "active"
            : kind == Kind::kView ? "view"
                                  : "committed"] = static_cast<double>(count);
  moment.Add(MetricType::Gauge, "kapsule_snapshots", "Snapshots", "kind", samples);
}

struct ProcessField {
  MetricType type;
  const char *name, *help;
  double ProcessFacts::*value;
};
constexpr ProcessField kProcessFields[] = {
    {MetricType::Counter, "kapsule_process_cpu_seconds_total", "Processor time used",
     &ProcessFacts::cpu_seconds},
    {MetricType::Gauge, "kapsule_process_resident_memory_bytes", "Resident memory",
     &ProcessFacts::resident_bytes},
    {MetricType::Gauge, "kapsule_process_start_time_seconds", "Start, since the epoch",
     &ProcessFacts::start_seconds},
    {MetricType::Gauge, "kapsule_process_threads", "Threads", &ProcessFacts::threads},
    {MetricType::Gauge, "kapsule_process_open_fds", "Open file descriptors",
     &ProcessFacts::open_files},
};

void AddProcesses(Moment& moment, const std::map<std::string, pid_t>& pids) {
  std::map<std::string, ProcessFacts> all;
  for (const auto& [program, pid] : pids) {
    const absl::StatusOr<ProcessFacts> facts = FactsOf(pid);
    if (facts.ok()) all.emplace(program, *facts);
  }
  for (const ProcessField& field : kProcessFields) {
    Moment::Samples samples;
    for (const auto& [program, facts] : all) samples[program] = facts.*field.value;
    moment.Add(field.type, field.name, field.help, "program", samples);
  }
}

}  // namespace

Metrics::Metrics()
    : open_seconds_(prometheus::BuildHistogram()
                        .Name("kapsule_layer_open_seconds")
                        .Help("How long it took to open and mount a layer")
                        .Register(registry_)
                        .Add({}, OpenBounds())),
      open_failures_(prometheus::BuildCounter()
                         .Name("kapsule_layer_open_failures_total")
                         .Help("Attempts to open a layer that failed")
                         .Register(registry_)),
      refusals_(prometheus::BuildCounter()
                    .Name("kapsule_authorisations_refused_total")
                    .Help("Containers whose image may not use the layers below it")
                    .Register(registry_)
                    .Add({})),
      rpcs_(prometheus::BuildCounter()
                .Name("kapsule_rpcs_total")
                .Help("Calls answered on the snapshotter's socket")
                .Register(registry_)),
      rpc_seconds_(prometheus::BuildHistogram()
                       .Name("kapsule_rpc_seconds")
                       .Help("How long calls took")
                       .Register(registry_)) {}

LayerEvents Metrics::layer_events() {
  return {.opened =
              [this](const absl::Status& status, absl::Duration duration) {
                if (status.ok())
                  open_seconds_.Observe(absl::ToDoubleSeconds(duration));
                else
                  open_failures_.Add({{"code", NameOf(status.code())}}).Increment();
              },
          .refused = [this](const absl::Status&) { refusals_.Increment(); }};
}

RpcEnded Metrics::rpc_ended() {
  return [this](const std::string& method, grpc::StatusCode code, absl::Duration duration) {
    const std::string name = NameOf(static_cast<absl::StatusCode>(code));
    rpcs_.Add({{"method", method}, {"code", name}}).Increment();
    rpc_seconds_.Add({{"method", method}}, RpcBounds()).Observe(absl::ToDoubleSeconds(duration));
  };
}

std::string Metrics::Text(const MetricSources& sources) const {
  Moment moment;
  moment.Add(MetricType::Gauge, "kapsule_build_info", "1; its label is the version", "version",
             {{KAPSULE_VERSION, 1}});
  Moment::Samples layers;
  for (const auto& [state, count] : sources.layers()) layers[state] = static_cast<double>(count);
  moment.Add(MetricType::Gauge, "kapsule_layers", "Kapsule layers of this node", "state", layers);
  const DataPlaneStatus data_plane = sources.data_plane();
  AddDataPlane(moment, data_plane);
  AddFetch(moment, sources.fetch(absl::Now() + kFetchTime));
  AddSnapshots(moment, sources.snapshots());
  AddProcesses(moment, {{"kapsule-snapshotter", getpid()},
                        {"kapsule-fuse", data_plane.pid},
                        {"kapsule-fetch", sources.fetch_pid()}});
  std::vector<MetricFamily> families = registry_.Collect();
  for (MetricFamily& family : moment.Take()) families.push_back(std::move(family));
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, families);
  return text.str();
}

}  // namespace kapsule::snapshotter
