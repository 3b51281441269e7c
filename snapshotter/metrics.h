// Numbers about this node for Prometheus (docs/metrics.md), and whether it is well.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>
#include <prometheus/registry.h>
#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "kapsule/v1/fetch.pb.h"
#include "snapshotter/data_plane_status.h"
#include "snapshotter/http_listener.h"
#include "snapshotter/layer_events.h"
#include "snapshotter/rpc_timer.h"
#include "snapshotter/snapshot.h"

namespace kapsule::snapshotter {

// Where the numbers of a moment come from. Called by several threads at once.
struct MetricSources {
  std::function<DataPlaneStatus()> data_plane;
  std::function<std::map<std::string, size_t>()> layers;  // by state
  std::function<absl::StatusOr<v1::FetchStats>(absl::Time deadline)> fetch;
  std::function<pid_t()> fetch_pid;  // -1 where there is none
  std::function<absl::StatusOr<std::map<Kind, size_t>>()> snapshots;
  std::function<absl::Status()> write_metadata;  // tries it
};

// What is counted as it happens. Thread-safe.
class Metrics {
 public:
  Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // Of what these give, nothing outlives this object.
  LayerEvents layer_events();
  RpcEnded rpc_ended();

  // All metrics in Prometheus' text format; those of the moment are asked for now.
  std::string Text(const MetricSources& sources) const;

 private:
  prometheus::Registry registry_;
  prometheus::Histogram& open_seconds_;
  prometheus::Family<prometheus::Counter>& open_failures_;
  prometheus::Counter& refusals_;
  prometheus::Family<prometheus::Counter>& rpcs_;
  prometheus::Family<prometheus::Histogram>& rpc_seconds_;
};

// One line for each thing that must work: "ok NAME", or "bad NAME: WHY". Thread-safe.
class Health {
 public:
  struct Report {
    bool well = true;
    std::string text;
  };
  // `now` is the time that counts.
  Report Check(const MetricSources& sources, absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  absl::Status MetadataStatus(const MetricSources& sources, absl::Time now)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Metadata is written at most once in some seconds, whoever asks, and while that
  // hangs, nobody else waits for it.
  absl::Mutex mu_;  // never held over I/O
  absl::Status metadata_ ABSL_GUARDED_BY(mu_);
  absl::Time tried_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  bool trying_ ABSL_GUARDED_BY(mu_) = false;
};

// Serves /metrics and /healthz; `metrics` outlives it.
absl::StatusOr<std::unique_ptr<HttpListener>> ServeMetrics(const ListenAddress& address,
                                                           const Metrics& metrics,
                                                           MetricSources sources);

}  // namespace kapsule::snapshotter
