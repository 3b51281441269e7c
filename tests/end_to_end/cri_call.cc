// Calls a method of the container runtime interface, as kubelet does:
//   cri_call SOCKET RuntimeService/ListContainers '{"…": …}'
// prints the answer as JSON; on an error "<code>: <message>" on stderr, exit 1.
#include <google/protobuf/dynamic_message.h>
#include <google/protobuf/util/json_util.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>

#include "cri/runtime.pb.h"

namespace {

namespace pb = google::protobuf;
constexpr auto kTimeout = std::chrono::seconds(300);

int Fail(int status, const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  return status;
}

const pb::MethodDescriptor* FindMethod(const std::string& path) {
  const size_t slash = path.find('/');
  if (slash == std::string::npos) return nullptr;
  const pb::ServiceDescriptor* service =
      runtime::v1::PullImageRequest::descriptor()->file()->FindServiceByName(path.substr(0, slash));
  return service == nullptr ? nullptr : service->FindMethodByName(path.substr(slash + 1));
}

grpc::Status Call(const std::string& socket, const std::string& method, const std::string& request,
                  grpc::ByteBuffer* answer) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  grpc::GenericStub stub(
      grpc::CreateCustomChannel("unix:" + socket, grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kTimeout);
  context.set_authority("localhost");
  const grpc::Slice slice(request);
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareUnaryCall(&context, method, grpc::ByteBuffer(&slice, 1), &queue);
  call->StartCall();
  grpc::Status status;
  call->Finish(answer, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  return status;
}

std::string Bytes(const grpc::ByteBuffer& buffer) {
  grpc::Slice slice;
  if (!buffer.DumpToSingleSlice(&slice).ok()) return {};
  return {reinterpret_cast<const char*>(slice.begin()), slice.size()};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return Fail(2, "usage: cri_call SOCKET SERVICE/METHOD JSON");
  const pb::MethodDescriptor* method = FindMethod(argv[2]);
  if (method == nullptr) return Fail(2, std::string("no method ") + argv[2]);
  pb::DynamicMessageFactory factory;
  const std::unique_ptr<pb::Message> request(factory.GetPrototype(method->input_type())->New());
  const auto parsed = pb::util::JsonStringToMessage(argv[3], request.get());
  if (!parsed.ok()) return Fail(2, parsed.ToString());

  grpc::ByteBuffer bytes;
  const grpc::Status status =
      Call(argv[1], std::string("/runtime.v1.") + argv[2], request->SerializeAsString(), &bytes);
  if (!status.ok())
    return Fail(1, std::to_string(status.error_code()) + ": " + status.error_message());
  const std::unique_ptr<pb::Message> answer(factory.GetPrototype(method->output_type())->New());
  if (!answer->ParseFromString(Bytes(bytes))) return Fail(1, "an answer that cannot be read");
  std::string json;
  pb::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  if (!pb::util::MessageToJsonString(*answer, &json, options).ok()) return 1;
  std::printf("%s\n", json.c_str());
  return 0;
}
