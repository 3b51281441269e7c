// Runs the built program: what it gives to whom, and what it leaves behind.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "core/base/json.h"
#include "core/base/unix_socket.h"
#include "core/crypt/keywrap_jwe.h"
#include "core/keyprovider/wire_frames.h"
#include "kapsule/v1/keys.grpc.pb.h"
#include "ocicrypt/keyprovider.grpc.pb.h"

extern char** environ;

namespace kapsule::keyprovider {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr uid_t kOtherUid = 65534;

class ProgramTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
    ASSERT_EQ(chmod(folder_.c_str(), 0755), 0);  // other users reach the sockets
    ASSERT_EQ(mkdir(Path("keys").c_str(), 0700), 0);
    key_ = AddKey("rsa.pem", "rsa-2048");
  }
  void TearDown() override {
    if (pid_ > 0) {
      EXPECT_EQ(Stop(SIGTERM), 0) << Log();
    }
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  std::string Log() const { return ReadFile(Path("log"), 1 << 20).value_or(""); }
  static std::string Self() { return std::to_string(getuid()); }

  crypt::Key AddKey(const std::string& name, const std::string& type) {
    const crypt::Key key = crypt::GenerateKey(type).value();
    const Secret pem = crypt::PrivatePem(key);
    EXPECT_TRUE(WriteFileAtomic(Path("keys/" + name), pem.bytes(), 0600).ok());
    return key;
  }

  // Starts the program with its output in the file "log".
  pid_t Spawn(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), KEYPROVIDER_PROGRAM);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, Path("log").c_str(),
                                     O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t pid = -1;
    EXPECT_EQ(posix_spawn(&pid, argv[0], &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    return pid;
  }

  // The exit code of a run that ends by itself.
  int RunToEnd(const std::vector<std::string>& arguments) {
    int status = 0;
    waitpid(Spawn(arguments), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  // Starts the daemon for `allowed` users and waits until it says that it is
  // ready, as systemd would.
  void Start(const std::vector<std::string>& allowed) {
    notify_ = UniqueFd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, Path("notify").c_str());
    ASSERT_EQ(bind(notify_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    setenv("NOTIFY_SOCKET", address.sun_path, 1);
    std::vector<std::string> arguments = {"--keys",          Path("keys"),     "--address",
                                          Path("keys.sock"), "--grpc-address", Path("grpc.sock")};
    for (const std::string& user : allowed) {
      arguments.push_back("--allow-uid");
      arguments.push_back(user);
    }
    pid_ = Spawn(arguments);
    unsetenv("NOTIFY_SOCKET");
    AwaitReady();
  }
  void AwaitReady() {
    for (std::string text; text != "READY=1";) {
      pollfd waiting{notify_.get(), POLLIN, 0};
      ASSERT_EQ(poll(&waiting, 1, 30'000), 1) << Log();
      char buffer[256];
      const ssize_t n = recv(notify_.get(), buffer, sizeof(buffer), 0);
      text.assign(buffer, static_cast<size_t>(std::max<ssize_t>(n, 0)));
    }
  }
  int Stop(int signal) {
    kill(pid_, signal);
    int status = 0;
    for (int i = 0; i < 3000 && waitpid(pid_, &status, WNOHANG) == 0; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  crypt::PrivateOptions Options() {
    crypt::PrivateOptions options;
    options.key = crypt::LayerKey::Generate().value();
    options.index = oci::IndexRef{1, 655360, 256, oci::Digest::Of(AsBytes("header"))};
    return options;
  }
  oci::Annotations Wrapped(const crypt::PrivateOptions& options, const crypt::Key& recipient) {
    return crypt::WrapLayer(options, {}, {&recipient, 1}).value();
  }
  absl::StatusOr<UnwrappedLayer> Ask(const oci::Annotations& annotations) {
    const UniqueFd fd = SealedMemfd("annotations", AsBytes(AnnotationsToJson(annotations))).value();
    return Unwrap(Path("keys.sock"), fd.get(), 30'000);
  }
  grpc::Status AskByGrpc(const oci::Annotations& annotations, v1::UnwrapResponse* response) {
    const auto stub = v1::Keys::NewStub(
        grpc::CreateChannel("unix:" + Path("grpc.sock"), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    v1::UnwrapRequest request;
    request.mutable_annotations()->insert(annotations.begin(), annotations.end());
    return stub->Unwrap(&context, request, response);
  }

  // As a stock tool, whose user has named keys of its own; the answer's JSON.
  grpc::Status AskAsOcicrypt(const std::string& jwe, std::string* answer) {
    const auto stub = ::keyprovider::KeyProviderService::NewStub(
        grpc::CreateChannel("unix:" + Path("grpc.sock"), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    ::keyprovider::KeyWrapProtocolInput request;
    request.set_json(
        R"({"op":"keyunwrap","keywrapparams":{"ec":null,"optsdata":null},"keyunwrapparams":)"
        R"({"dc":{"Parameters":{"privkeys":["dXNlcnMta2V5"]}},"annotation":")" +
        EncodeBase64(AsBytes(jwe)) + "\"}}");
    ::keyprovider::KeyWrapProtocolOutput response;
    const grpc::Status status = stub->UnWrapKey(&context, request, &response);
    *answer = response.json();
    return status;
  }

  std::string folder_ = "/tmp/kapsule-provider-XXXXXX";
  crypt::Key key_;
  UniqueFd notify_;
  pid_t pid_ = -1;
};

TEST_F(ProgramTest, AnAllowedUserGetsTheLayerKeyByBothWays) {
  Start({Self()});
  const crypt::PrivateOptions options = Options();
  const oci::Annotations annotations = Wrapped(options, key_);
  const absl::StatusOr<UnwrappedLayer> layer = Ask(annotations);
  ASSERT_TRUE(layer.ok()) << layer.status();
  EXPECT_TRUE(layer->key.key.Equals(options.key.key.bytes()));
  EXPECT_TRUE(layer->key.nonce.Equals(options.key.nonce.bytes()));
  EXPECT_EQ(layer->index, options.index);
  v1::UnwrapResponse response;
  const grpc::Status status = AskByGrpc(annotations, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.key(), options.key.key.text());
  EXPECT_EQ(response.index(), options.index->ToJson());
}

TEST_F(ProgramTest, AStockToolGetsThePrivateOptionsByteByByte) {
  Start({Self()});
  const Secret options = Options().Serialize();
  std::string answer;
  const grpc::Status status =
      AskAsOcicrypt(crypt::WrapJwe(options.bytes(), {&key_, 1}).value(), &answer);
  ASSERT_TRUE(status.ok()) << status.error_message();
  const Json json = ParseJson(answer, 1 << 20).value();
  const auto numbers = json["keyunwrapresults"]["optsdata"].get<std::vector<uint8_t>>();
  EXPECT_EQ(std::string(numbers.begin(), numbers.end()), options.text());
  EXPECT_THAT(
      Log(), HasSubstr(fmt::format("key={} offered=provider result=OK", crypt::Fingerprint(key_))));
  EXPECT_THAT(Log(), Not(HasSubstr("dXNlcnMta2V5")));
}

TEST_F(ProgramTest, ItIsNoDecryptionServiceForOtherMessages) {
  Start({Self()});
  std::string answer;
  const std::string other = crypt::WrapJwe(AsBytes("{\"a\":\"b\"}"), {&key_, 1}).value();
  EXPECT_EQ(AskAsOcicrypt(other, &answer).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const crypt::Key stranger = crypt::GenerateKey("ec-p256").value();
  const std::string not_ours =
      crypt::WrapJwe(Options().Serialize().bytes(), {&stranger, 1}).value();
  EXPECT_EQ(AskAsOcicrypt(not_ours, &answer).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(answer.empty());
}

TEST_F(ProgramTest, AnAnnotationThatMakesManyKeysBeTriedIsGivenUp) {
  const Secret pem = crypt::PrivatePem(key_);  // one key in 17 files is 17 keys
  for (int i = 0; i < 16; ++i)
    ASSERT_TRUE(WriteFileAtomic(Path(fmt::format("keys/{}.pem", i)), pem.bytes(), 0600).ok());
  Start({Self()});
  const std::vector<crypt::Key> strangers(32, crypt::GenerateKey("rsa-2048").value());
  const oci::Annotations annotations = crypt::WrapLayer(Options(), {}, strangers).value();
  const absl::Status status = Ask(annotations).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("too many wrapped keys"));
  EXPECT_TRUE(Ask(Wrapped(Options(), key_)).ok());
}

TEST_F(ProgramTest, EachRequestLeavesALineWithoutSecrets) {
  Start({Self()});
  const crypt::PrivateOptions options = Options();
  const oci::Annotations annotations = Wrapped(options, key_);
  ASSERT_TRUE(Ask(annotations).ok());
  EXPECT_EQ(Stop(SIGTERM), 0);
  EXPECT_THAT(Log(), HasSubstr(fmt::format("unwrap uid={} pid={} key={} offered=jwe result=OK",
                                           getuid(), getpid(), crypt::Fingerprint(key_))));
  EXPECT_THAT(Log(), Not(HasSubstr(EncodeBase64(options.key.key.bytes()))));
  EXPECT_THAT(Log(), Not(HasSubstr(annotations.at(oci::kJweAnnotation).substr(0, 64))));
}

TEST_F(ProgramTest, AUserThatIsNotListedIsRefusedEvenRoot) {
  Start({std::to_string(kOtherUid)});
  const oci::Annotations annotations = Wrapped(Options(), key_);
  EXPECT_TRUE(absl::IsPermissionDenied(Ask(annotations).status()));
  v1::UnwrapResponse response;
  EXPECT_EQ(AskByGrpc(annotations, &response).error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_TRUE(response.key().empty());
  std::string answer;
  EXPECT_EQ(AskAsOcicrypt("{}", &answer).error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_THAT(Log(), HasSubstr("result=PERMISSION_DENIED"));
}

TEST_F(ProgramTest, NobodyIsAllowedByDefault) {
  Start({});
  EXPECT_TRUE(absl::IsPermissionDenied(Ask(Wrapped(Options(), key_)).status()));
}

TEST_F(ProgramTest, TheUidOfTheConnectingProcessCounts) {
  ASSERT_EQ(geteuid(), 0u) << "needs root to become another user";
  Start({std::to_string(kOtherUid)});
  const oci::Annotations annotations = Wrapped(Options(), key_);
  const pid_t child = fork();
  if (child == 0) {
    if (setgid(kOtherUid) != 0 || setuid(kOtherUid) != 0) _exit(2);
    _exit(Ask(annotations).ok() ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << Log();
}

TEST_F(ProgramTest, ALayerForAnotherKeyIsNotFound) {
  Start({Self()});
  const oci::Annotations annotations = Wrapped(Options(), crypt::GenerateKey("ec-p256").value());
  const absl::Status status = Ask(annotations).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("jwe"));
  v1::UnwrapResponse response;
  EXPECT_EQ(AskByGrpc(annotations, &response).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ProgramTest, MalformedAnnotationsAreInvalid) {
  Start({Self()});
  oci::Annotations annotations = Wrapped(Options(), key_);
  annotations[oci::kJweAnnotation] = "%%%";
  EXPECT_TRUE(absl::IsInvalidArgument(Ask(annotations).status()));
  const UniqueFd fd = SealedMemfd("annotations", AsBytes("[1")).value();
  EXPECT_TRUE(absl::IsInvalidArgument(Unwrap(Path("keys.sock"), fd.get(), 30'000).status()));
}

TEST_F(ProgramTest, MalformedFramesGetAnErrorAndHarmNobody) {
  Start({Self()});
  const auto good = EncodeRequest(2);
  const UniqueFd fd = SealedMemfd("annotations", AsBytes("{}")).value();
  const auto answer = [&](ByteSpan frame, const std::vector<int>& fds) {
    const UniqueFd connection = ConnectUnix(Path("keys.sock"), SOCK_SEQPACKET).value();
    EXPECT_TRUE(SendPacket(connection.get(), frame, fds).ok());
    return DecodeReply(AsBytes(ReceivePacket(connection.get()).value().bytes)).status();
  };
  for (size_t size = 1; size < good.size(); ++size)
    EXPECT_TRUE(absl::IsInvalidArgument(answer(ByteSpan(good).first(size), {fd.get()}))) << size;
  EXPECT_TRUE(absl::IsInvalidArgument(answer(good, {})));
  EXPECT_TRUE(absl::IsInvalidArgument(answer(Bytes(100'000), {})));
  EXPECT_TRUE(absl::IsInvalidArgument(answer(EncodeRequest(3), {fd.get()})));
  const UniqueFd stream = ConnectUnix(Path("grpc.sock"), SOCK_STREAM).value();
  EXPECT_TRUE(WriteAll(stream.get(), Bytes(1000)).ok());
  EXPECT_TRUE(Ask(Wrapped(Options(), key_)).ok());
}

TEST_F(ProgramTest, StalledConnectionsHoldUpNobodyAndAreBounded) {
  Start({Self()});
  std::vector<UniqueFd> stalled;
  for (int i = 0; i < 63; ++i)
    stalled.push_back(ConnectUnix(Path("keys.sock"), SOCK_SEQPACKET).value());
  const oci::Annotations annotations = Wrapped(Options(), key_);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_TRUE(Ask(annotations).ok());
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(8));  // 10: a stall
  // The place of one that was served comes free a moment after its answer.
  absl::Status crowded;
  for (int i = 0; i < 10 && !absl::IsUnavailable(crowded); ++i) {
    for (int n = 0; n < 64; ++n)
      stalled.push_back(ConnectUnix(Path("keys.sock"), SOCK_SEQPACKET).value());
    crowded = Ask(annotations).status();
  }
  EXPECT_TRUE(absl::IsUnavailable(crowded)) << crowded;
}

TEST_F(ProgramTest, PeersThatAreNotAllowedCannotTakeAllPlaces) {
  ASSERT_EQ(geteuid(), 0u) << "needs root to become another user";
  Start({std::to_string(kOtherUid)});
  std::vector<UniqueFd> stalled;
  for (int i = 0; i < 100; ++i)
    stalled.push_back(ConnectUnix(Path("keys.sock"), SOCK_SEQPACKET).value());
  const oci::Annotations annotations = Wrapped(Options(), key_);
  const pid_t child = fork();
  if (child == 0) _exit(setuid(kOtherUid) == 0 && Ask(annotations).ok() ? 0 : 1);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << Log();
}

TEST_F(ProgramTest, HangupReadsTheKeysAgainAndPassesOverOtherFiles) {
  ASSERT_TRUE(WriteFileAtomic(Path("keys/README"), AsBytes("not a key"), 0600).ok());
  Start({Self()});
  const crypt::Key added = AddKey("ec.pem", "ec-p384");
  const oci::Annotations annotations = Wrapped(Options(), added);
  EXPECT_TRUE(absl::IsNotFound(Ask(annotations).status()));
  kill(pid_, SIGHUP);
  AwaitReady();
  EXPECT_TRUE(Ask(annotations).ok());
  EXPECT_TRUE(Ask(Wrapped(Options(), key_)).ok());
  EXPECT_THAT(Log(), HasSubstr("README: not a key"));
}

TEST_F(ProgramTest, TermAndInterruptLeaveNoSocketAndNoProcess) {
  for (const int signal : {SIGTERM, SIGINT}) {
    Start({Self()});
    const UniqueFd open = ConnectUnix(Path("keys.sock"), SOCK_SEQPACKET).value();
    const UniqueFd open_grpc = ConnectUnix(Path("grpc.sock"), SOCK_STREAM).value();
    EXPECT_EQ(Stop(signal), 0) << Log();
    EXPECT_FALSE(std::filesystem::exists(Path("keys.sock")));
    EXPECT_FALSE(std::filesystem::exists(Path("grpc.sock")));
    unlink(Path("notify").c_str());
  }
}

TEST_F(ProgramTest, ItsMemoryIsNeitherDumpedNorSwapped) {
  Start({Self()});
  const std::string proc = fmt::format("/proc/{}/", pid_);
  struct stat st;
  ASSERT_EQ(stat((proc + "mem").c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 0u);  // root's, as for every process that is not dumpable
  const auto read_text = [&](const std::string& name) {
    std::string text(8192, '\0');
    const UniqueFd fd = OpenFile(proc + name, O_RDONLY).value();
    text.resize(
        static_cast<size_t>(std::max<ssize_t>(read(fd.get(), text.data(), text.size()), 0)));
    return text;
  };
  EXPECT_THAT(read_text("limits"), ::testing::ContainsRegex("Max core file size +0 +0 "));
  if (geteuid() == 0) {
    EXPECT_THAT(read_text("status"), Not(HasSubstr("VmLck:\t       0 kB")));
  }
}

TEST_F(ProgramTest, ASecondInstanceLeavesTheFirstAlone) {
  Start({Self()});
  EXPECT_EQ(RunToEnd({"--keys", Path("keys"), "--address", Path("keys.sock")}), 1);
  EXPECT_THAT(Log(), HasSubstr("another process listens"));
  EXPECT_TRUE(Ask(Wrapped(Options(), key_)).ok());
}

TEST_F(ProgramTest, TheCommandLineOverridesTheFile) {
  const std::string text =
      fmt::format("keys = \"{0}/none\"\naddress = \"{0}/file.sock\"\n", folder_);
  ASSERT_TRUE(WriteFileAtomic(Path("c.toml"), AsBytes(text), 0600).ok());
  EXPECT_EQ(RunToEnd({"--config", Path("c.toml")}), 1);  // no such folder
  EXPECT_THAT(Log(), HasSubstr(Path("none")));
  EXPECT_EQ(
      RunToEnd({"--config", Path("c.toml"), "--keys", Path("keys"), "--allow-uid", "no-such-user"}),
      1);
  EXPECT_THAT(Log(), HasSubstr("no user \"no-such-user\""));
  EXPECT_FALSE(std::filesystem::exists(Path("file.sock")));
}

TEST_F(ProgramTest, HelpVersionAndWrongUse) {
  EXPECT_EQ(RunToEnd({"--help"}), 0);
  EXPECT_THAT(Log(), HasSubstr("Examples:"));
  EXPECT_EQ(RunToEnd({"--version"}), 0);
  EXPECT_THAT(Log(), HasSubstr("kapsule-keyprovider " KAPSULE_VERSION));
  EXPECT_EQ(RunToEnd({}), 2);
  EXPECT_EQ(RunToEnd({"--unknown"}), 2);
  EXPECT_EQ(RunToEnd({"--keys", Path("keys"), "--log-level", "loud"}), 2);
}

}  // namespace
}  // namespace kapsule::keyprovider
