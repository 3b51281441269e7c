#include "snapshotter/rpc_timer.h"

#include <absl/time/clock.h>

#include <string_view>

namespace kapsule::snapshotter {
namespace {

namespace rpc = grpc::experimental;

// "/containerd.services.snapshots.v1.Snapshots/Prepare" without what stands before the
// service's own name. gRPC calls all methods that the server does not have "unknown".
std::string ShortName(std::string_view method) {
  if (!method.starts_with('/')) return std::string(method);
  const size_t dot = method.rfind('.', method.rfind('/'));
  return std::string(method.substr(dot == method.npos ? 1 : dot + 1));
}

class Timer final : public rpc::Interceptor {
 public:
  Timer(const char* method, const RpcEnded& ended) : method_(method), ended_(ended) {}
  void Intercept(rpc::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(rpc::InterceptionHookPoints::PRE_SEND_STATUS))
      ended_(ShortName(method_), methods->GetSendStatus().error_code(), absl::Now() - start_);
    methods->Proceed();
  }

 private:
  const char* const method_;
  const RpcEnded& ended_;
  const absl::Time start_ = absl::Now();
};

class Timers final : public rpc::ServerInterceptorFactoryInterface {
 public:
  explicit Timers(RpcEnded ended) : ended_(std::move(ended)) {}
  rpc::Interceptor* CreateServerInterceptor(rpc::ServerRpcInfo* info) override {
    return new Timer(info->method(), ended_);  // gRPC deletes it
  }

 private:
  const RpcEnded ended_;
};

}  // namespace

std::unique_ptr<rpc::ServerInterceptorFactoryInterface> TimeRpcs(RpcEnded ended) {
  return std::make_unique<Timers>(std::move(ended));
}

}  // namespace kapsule::snapshotter
