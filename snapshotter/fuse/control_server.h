// What kapsule-fuse does for the snapshotter, request by request.
#pragma once

#include <atomic>
#include <filesystem>
#include <memory>
#include <optional>

#include "core/control/control_wire.h"
#include "core/control/holder_wire.h"
#include "snapshotter/fuse/fetch_client.h"
#include "snapshotter/fuse/held_views.h"
#include "snapshotter/fuse/key_fetcher.h"
#include "snapshotter/fuse/layer_opener.h"
#include "snapshotter/fuse/task_pool.h"
#include "snapshotter/fuse/view_restorer.h"
#include "snapshotter/fuse/worker_pool.h"

namespace kapsule::fuse {

// Lives as long as the process, which ends by _exit(2): its threads use it.
class ControlServer {
 public:
  struct Options {
    UniqueFd control;
    std::shared_ptr<const control::Holder> holder;
    std::filesystem::path keyprovider;
    absl::Duration key_grace;
    FetchClient::Options fetch;
    absl::Time process_start;
  };
  ControlServer(Options options, std::unique_ptr<RequestMemory> memory,
                std::unique_ptr<ReadEngine> engine, std::unique_ptr<WorkerPool> workers);

  // Answers requests until SIGTERM or SIGINT arrives, which must be blocked, or
  // the control socket closes before it serves: then OK. Once it serves it goes
  // on without control.
  //   InvalidArgument  the peer does not speak the protocol, and nothing is served
  //   Unavailable      the FUSE mount is gone
  //   others           it was asked to serve and could not
  absl::Status Run();

 private:
  enum class State { kIdle, kServing };

  // control_server.cc
  absl::Status HandlePacket();
  // Packets, and the end of them; an error ends the process.
  absl::Status HandleControl();
  void Dispatch(control::ReceivedRequest request);
  void Open(const v1::DataPlaneRequest& request, std::vector<UniqueFd> fds);
  void Authorise(const v1::DataPlaneRequest& request, UniqueFd annotations);
  void UseFile(const v1::DataPlaneRequest& request, UniqueFd blob);
  void UseLocal(const v1::DataPlaneRequest& request, UniqueFd blob);
  // Runs `task` in `pool`, or answers that there is too much to do; after the
  // key of view `name` has come or failed, where that is open.
  void Enqueue(TaskPool& pool, const std::string& name, uint64_t id,
               std::function<v1::DataPlaneReply()> task);
  void EnqueueNow(TaskPool& pool, uint64_t id, std::function<v1::DataPlaneReply()> task);
  void Answer(const v1::DataPlaneReply& reply);
  void ConnectionLost(const absl::Status& why);

  // control_server_serve.cc
  void Prepare(uint64_t id, uint32_t timeout_ms);
  void Serve(uint64_t id);
  absl::Status StartServing(uint64_t id);
  absl::Status AgreeOnMemory() const;
  absl::Status StartFetching();
  void AnswerServe(uint64_t id);
  void LogFirstReply() const;
  absl::Status UseFetcher(UniqueFd socket);

  const Options options_;
  const std::unique_ptr<RequestMemory> memory_;
  const std::unique_ptr<ReadEngine> engine_;
  const std::unique_ptr<WorkerPool> workers_;
  // Plain layers wait for no keyprovider, and local ones for no registry, so they
  // have threads of their own; what the holder is to forget has one.
  TaskPool keyed_, plain_, remote_, chores_;
  ViewTable views_;
  Session session_{views_};
  HeldViews held_;
  FetchClient fetch_;
  LayerOpener opener_;
  KeyFetcher keys_;
  ViewRestorer restorer_;

  // Of the thread in Run(); set before there are workers.
  State state_ = State::kIdle;
  absl::Status failure_;  // to serve: ends the process
  bool control_open_ = true;
  bool prepared_ = false;
  size_t views_taken_ = 0, requests_taken_ = 0;
  std::unique_ptr<FuseDevice> device_;
  std::unique_ptr<ReadPath> reads_;

  std::atomic<bool> serve_answered_ = false;
  UniqueFd lost_fd_;  // an eventfd: the FUSE connection has ended
  absl::Mutex mu_;
  absl::Status lost_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kapsule::fuse
