// How long snapshots take when many are wanted at once, as when a node starts all
// its pods: TOTAL containers on one layer by WORKERS callers over one connection,
// then each asked for with Stat and Usage, and removed. A line of JSON, in
// milliseconds altogether. SOCKET is that of a kapsule-snapshotter to play with, or of a
// containerd which is asked for its SNAPSHOTTER.
//
// Usage: prepare_storm SOCKET TOTAL WORKERS [SNAPSHOTTER]
#include <absl/time/clock.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <charconv>
#include <cstdio>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "containerd/services/snapshots/v1/snapshots.grpc.pb.h"

namespace {

namespace api = containerd::services::snapshots::v1;

constexpr char kLayer[] = "prepare-storm-layer";
constexpr char kUnpacking[] = "prepare-storm-unpacking";
constexpr char kKept[] = "containerd.io/gc.root";  // else containerd may collect them

std::string KeyOf(int number) { return "default/1/prepare-storm-" + std::to_string(number); }

class Storm {
 public:
  Storm(const std::string& socket, std::string snapshotter, int total, int workers)
      : stub_(grpc::CreateChannel("unix:" + socket, grpc::InsecureChannelCredentials())),
        snapshotter_(std::move(snapshotter)),
        total_(total),
        workers_(workers) {}

  bool Run() {
    MakeLayer();
    const double prepare = Timed([this](int number) { return Prepare(KeyOf(number), kLayer); });
    const double stat = Timed([this](int number) { return Stat(KeyOf(number)); });
    const double usage = Timed([this](int number) { return Usage(KeyOf(number)); });
    const double remove = Timed([this](int number) { return Remove(KeyOf(number)); });
    Check(Remove(kLayer));
    std::printf(
        "{\"total\":%d,\"workers\":%d,\"prepare_ms\":%.1f,\"stat_ms\":%.1f,\"usage_ms\":%.1f,"
        "\"remove_ms\":%.1f}\n",
        total_, workers_, prepare, stat, usage, remove);
    return !failed_;
  }

 private:
  // The time until `call` has been made for every number.
  double Timed(const std::function<grpc::Status(int)>& call) {
    std::atomic<int> next = 0;
    std::vector<std::thread> workers;
    const absl::Time start = absl::Now();
    for (int i = 0; i < workers_; ++i) {
      workers.emplace_back([&] {
        for (int number; (number = next++) < total_;) Check(call(number));
      });
    }
    for (std::thread& worker : workers) worker.join();
    return absl::ToDoubleMilliseconds(absl::Now() - start);
  }

  void Check(const grpc::Status& status) {
    if (!status.ok() && !failed_.exchange(true))
      std::fprintf(stderr, "prepare_storm: %s\n", status.error_message().c_str());
  }

  void MakeLayer() {
    Check(Prepare(kUnpacking, ""));
    api::CommitSnapshotRequest request;
    google::protobuf::Empty response;
    request.set_name(kLayer);
    request.mutable_labels()->insert({kKept, "storm"});
    Check(Call(&api::Snapshots::Stub::Commit, kUnpacking, request, &response));
  }
  grpc::Status Prepare(const std::string& key, const std::string& parent) {
    api::PrepareSnapshotRequest request;
    api::PrepareSnapshotResponse response;
    request.set_parent(parent);
    request.mutable_labels()->insert({kKept, "storm"});
    return Call(&api::Snapshots::Stub::Prepare, key, request, &response);
  }
  grpc::Status Stat(const std::string& key) {
    api::StatSnapshotRequest request;
    api::StatSnapshotResponse response;
    return Call(&api::Snapshots::Stub::Stat, key, request, &response);
  }
  grpc::Status Usage(const std::string& key) {
    api::UsageRequest request;
    api::UsageResponse response;
    return Call(&api::Snapshots::Stub::Usage, key, request, &response);
  }
  grpc::Status Remove(const std::string& key) {
    api::RemoveSnapshotRequest request;
    google::protobuf::Empty response;
    return Call(&api::Snapshots::Stub::Remove, key, request, &response);
  }
  template <typename Request, typename Response>
  grpc::Status Call(grpc::Status (api::Snapshots::Stub::*method)(grpc::ClientContext*,
                                                                 const Request&, Response*),
                    const std::string& key, Request& request, Response* response) {
    grpc::ClientContext context;
    if (!snapshotter_.empty()) context.AddMetadata("containerd-namespace", "default");
    request.set_snapshotter(snapshotter_);
    request.set_key(key);
    return (stub_.*method)(&context, request, response);
  }

  api::Snapshots::Stub stub_;
  const std::string snapshotter_;  // empty: `stub_` is one
  const int total_, workers_;
  std::atomic<bool> failed_ = false;
};

bool ParseCount(std::string_view text, int& number) {
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
  return parsed.ec == std::errc() && parsed.ptr == text.data() + text.size() && number > 0;
}

}  // namespace

int main(int argc, char** argv) {
  int total = 0, workers = 0;
  if (argc < 4 || argc > 5 || !ParseCount(argv[2], total) || !ParseCount(argv[3], workers)) {
    std::fputs("usage: prepare_storm SOCKET TOTAL WORKERS [SNAPSHOTTER]\n", stderr);
    return 2;
  }
  return Storm(argv[1], argc == 5 ? argv[4] : "", total, workers).Run() ? 0 : 1;
}
