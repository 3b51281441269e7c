// kapsule-ctl build and inspect with the program itself, a real registry and
// skopeo.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>

#include <chrono>
#include <thread>

#include "core/blob/layer_reader.h"
#include "core/crypt/keywrap_jwe.h"
#include "core/oci/manifest.h"
#include "core/view/view.h"
#include "kapsule-ctl/program_test_util.h"

namespace kapsule::ctl {
namespace {
namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr char kMarker[] = "kapsule-program-test-marker-6f1d0b";

// One model and two key pairs for all tests.
class BuildProgramTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new TempFolder();
    Must({PROJECT_SOURCE_DIR "/scripts/make-tiny-gguf", Shared("tiny.gguf"), "--marker", kMarker,
          "--pad-mib", "3"});
    for (const char* type : {"rsa-2048", "ec-p384"})
      Must({KAPSULE_CTL, "keys", "generate", "--type", type, "-o", Shared(type)});
    WriteText(Shared("Modelfile"), "FROM ./tiny.gguf\nSYSTEM You are brief.\n");
  }
  static void TearDownTestSuite() { delete shared_; }

  static std::string Shared(const std::string& name) { return (*shared_ / name).string(); }
  static void Must(const std::vector<std::string>& command) {
    const Ran ran = RunProgram(*shared_, command);
    ASSERT_EQ(ran.code, 0) << testing::PrintToString(command) << ran.err;
  }

  std::string Here(const std::string& name) { return (folder_ / name).string(); }
  Ran Ctl(std::vector<std::string> arguments, const std::string& input = "",
          const std::vector<std::string>& environment = {}) {
    arguments.insert(arguments.begin(), KAPSULE_CTL);
    return RunProgram(folder_, arguments, input, environment);
  }
  // Builds the shared model.
  Ran Build(std::vector<std::string> arguments, const std::string& input = "",
            const std::vector<std::string>& environment = {}) {
    arguments.insert(arguments.begin(), "build");
    arguments.push_back(Shared(""));
    return Ctl(arguments, input, environment);
  }
  static std::string PublicKey(const char* type) {
    return Shared(std::string(type) + "/public.pem");
  }

  static TempFolder* shared_;
  TempFolder folder_;
};
TempFolder* BuildProgramTest::shared_ = nullptr;

std::unique_ptr<blob::LayerReader> OpenLayer(const fs::path& layout, const Json& layer,
                                             const std::string& private_pem) {
  const auto descriptor = oci::DescriptorFromJson(layer);
  EXPECT_TRUE(descriptor.ok()) << descriptor.status();
  auto ref = oci::IndexRef::FromJson(descriptor->annotations.at(oci::kIndexAnnotation));
  std::optional<crypt::LayerKey> key;
  if (oci::IsEncrypted(descriptor->media_type)) {
    const crypt::Key private_key = *crypt::LoadPrivateKey(private_pem);
    auto options = crypt::UnwrapLayer(descriptor->annotations, {&private_key, 1});
    EXPECT_TRUE(options.ok()) << options.status();
    EXPECT_EQ(options->index, *ref);
    key = std::move(options->key);
  }
  auto file = FileReader::Open(layout / "blobs/sha256" / descriptor->digest.hex());
  auto reader = blob::LayerReader::Open(*std::move(file), *ref, std::move(key));
  EXPECT_TRUE(reader.ok()) << reader.status();
  return *std::move(reader);
}

std::string ReadEntry(const blob::LayerReader& layer, const archive::TocEntry& entry) {
  std::string content(entry.size, '\0');
  EXPECT_TRUE(layer.Read(entry.offset, std::as_writable_bytes(std::span(content))).ok());
  return content;
}

const archive::TocEntry* Find(const archive::Toc& toc, const std::string& path) {
  for (const archive::TocEntry& entry : toc.entries) {
    if (entry.path == path) return &entry;
  }
  return nullptr;
}

TEST_F(BuildProgramTest, EachRecipientReadsTheModelsOwnBytes) {
  for (const char* chunk_size : {"64KiB", "16KiB"}) {
    const fs::path layout = Here(std::string("layout-") + chunk_size);
    const Ran ran =
        Build({"-t", "acme/tiny:enc", "-o", layout, "--encryption-key", PublicKey("rsa-2048"),
               "--encryption-key", PublicKey("ec-p384"), "--chunk-size", chunk_size});
    ASSERT_EQ(ran.code, 0) << ran.err;
    const Json manifest = ManifestOf(layout);
    ASSERT_EQ(manifest["layers"].size(), 3u);
    for (const char* type : {"rsa-2048", "ec-p384"}) {
      const auto layer =
          OpenLayer(layout, manifest["layers"][1], Shared(std::string(type) + "/private.pem"));
      EXPECT_EQ(layer->header().chunk_size, *chunk_size == '6' ? 65536u : 16384u);
      const auto toc = layer->ReadToc();
      ASSERT_TRUE(toc.ok()) << toc.status();
      const archive::TocEntry* entry = Find(*toc, "models/tiny/model.gguf");
      ASSERT_NE(entry, nullptr);
      EXPECT_TRUE(ReadEntry(*layer, *entry) == ReadText(Shared("tiny.gguf")));
    }
    auto view =
        view::View::Open(OpenLayer(layout, manifest["layers"][1], Shared("ec-p384/private.pem")));
    ASSERT_TRUE(view.ok()) << view.status();
    for (const std::string& blob : BlobsOf(layout))
      EXPECT_EQ(ReadText(layout / "blobs/sha256" / blob).find(kMarker), std::string::npos);
  }
}

TEST_F(BuildProgramTest, APlainBuildIsTheSameTwice) {
  const Ran one = Build({"-t", "tiny:plain", "-o", Here("one"), "--json"});
  const Ran two = Build({"-t", "tiny:plain", "-o", Here("two"), "--json"});
  ASSERT_EQ(one.code, 0) << one.err;
  const auto json = ParseJson(one.out, 1 << 20);
  ASSERT_TRUE(json.ok());
  EXPECT_EQ((*json)["digest"], ParseJson(two.out, 1 << 20)->at("digest"));
  EXPECT_EQ((*json)["layers"].size(), 3u);
  EXPECT_EQ((*json)["layers"][1]["encrypted"], false);
  EXPECT_EQ((*json)["layers"][1]["diffID"], (*json)["layers"][1]["digest"]);
  EXPECT_EQ(ReadText(Here("one/index.json")), ReadText(Here("two/index.json")));
  const Ran later = Build({"-t", "tiny:plain", "-o", Here("later"), "--json"}, "",
                          {"SOURCE_DATE_EPOCH=1700000000"});
  EXPECT_NE((*json)["digest"], ParseJson(later.out, 1 << 20)->at("digest"));
  const Ran bad = Build({"-t", "x", "-o", Here("bad")}, "", {"SOURCE_DATE_EPOCH=yesterday"});
  EXPECT_EQ(bad.code, 1);
  EXPECT_THAT(bad.err, HasSubstr("SOURCE_DATE_EPOCH"));
}

TEST_F(BuildProgramTest, TwoEncryptedBuildsDiffer) {
  for (const char* name : {"one", "two"})
    ASSERT_EQ(
        Build({"-t", "tiny:enc", "-o", Here(name), "--encryption-key", PublicKey("ec-p384")}).code,
        0);
  const Json one = ManifestOf(Here("one")), two = ManifestOf(Here("two"));
  const Json config_one = BlobJson(Here("one"), one["config"]["digest"]);
  const Json config_two = BlobJson(Here("two"), two["config"]["digest"]);
  for (size_t i = 0; i < 3; ++i) {  // docs/adr/0003 for the bottom layer
    EXPECT_NE(one["layers"][i]["digest"], two["layers"][i]["digest"]);
    EXPECT_NE(config_one["rootfs"]["diff_ids"][i], config_two["rootfs"]["diff_ids"][i]);
  }
}

TEST_F(BuildProgramTest, SkopeoDecryptsToTheDiffIds) {
  const std::string layout = Here("layout"), out = Here("out");
  ASSERT_EQ(Build({"-t", "tiny:enc", "-o", layout, "--encryption-key", PublicKey("rsa-2048"),
                   "--encryption-key", PublicKey("ec-p384")})
                .code,
            0);
  const Ran skopeo = RunProgram(
      folder_, {"skopeo", "copy", "--insecure-policy", "--dest-oci-accept-uncompressed-layers",
                "--decryption-key", Shared("rsa-2048/private.pem"), "oci:" + layout + ":enc",
                "oci:" + out + ":x"});
  ASSERT_EQ(skopeo.code, 0) << skopeo.err;
  const Json manifest = ManifestOf(out);
  const Json config = BlobJson(out, manifest["config"]["digest"]);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(manifest["layers"][i]["mediaType"], oci::kLayerTarType);
    EXPECT_EQ(manifest["layers"][i]["digest"], config["rootfs"]["diff_ids"][i]);
  }
  const std::string blob =
      out + "/blobs/sha256/" + manifest["layers"][1]["digest"].get<std::string>().substr(7);
  const Ran tar = RunProgram(folder_, {"tar", "-xf", blob, "-C", folder_.path()});
  EXPECT_EQ(tar.code, 0) << tar.err;
  EXPECT_TRUE(ReadText(Here("models/tiny/model.gguf")) == ReadText(Shared("tiny.gguf")));
  const auto name = *fs::directory_iterator(Here("ollama/models/blobs"));
  EXPECT_TRUE(fs::equivalent(name.path(), Here("models/tiny/model.gguf")));
}

TEST_F(BuildProgramTest, ARegistryGetsTheImageThatIsPrinted) {
  const Registry registry(folder_);
  const std::string image = registry.host() + "/acme/tiny:enc";
  const Ran built = Build({"-t", image, "--insecure", "--json", "--encryption-key",
                           PublicKey("rsa-2048"), "--progress", "none"});
  ASSERT_EQ(built.code, 0) << built.err;
  EXPECT_EQ(built.err, "");
  const auto result = ParseJson(built.out, 1 << 20);
  ASSERT_TRUE(result.ok());
  const Ran skopeo =
      RunProgram(folder_, {"skopeo", "inspect", "--tls-verify=false", "docker://" + image});
  ASSERT_EQ(skopeo.code, 0) << skopeo.err;
  EXPECT_EQ(ParseJson(skopeo.out, 1 << 20)->at("Digest"), (*result)["digest"]);

  const Ran shown = Ctl({"inspect", image, "--insecure", "--json"});
  ASSERT_EQ(shown.code, 0) << shown.err;
  const auto facts = ParseJson(shown.out, 1 << 20);
  ASSERT_TRUE(facts.ok());
  EXPECT_EQ((*facts)["digest"], (*result)["digest"]);
  EXPECT_EQ((*facts)["layers"][0]["kind"], "skeleton");
  EXPECT_EQ((*facts)["layers"][1]["kind"], "model");
  EXPECT_EQ((*facts)["layers"][1]["encrypted"], true);
  EXPECT_EQ((*facts)["layers"][1]["keys"], Json::array({"jwe"}));
  EXPECT_THAT(Ctl({"inspect", image, "--insecure"}).out, HasSubstr("jwe"));

  const Ran absent = Ctl({"inspect", registry.host() + "/acme/absent:1", "--insecure"});
  EXPECT_EQ(absent.code, 4) << absent.err;
  EXPECT_THAT(absent.err, HasSubstr("acme/absent:1"));
  const Ran no_base = Build({"-t", image, "--insecure", "--base", registry.host() + "/none:1"});
  EXPECT_EQ(no_base.code, 4) << no_base.err;
  EXPECT_THAT(no_base.err, HasSubstr("/none:1"));
}

TEST_F(BuildProgramTest, ARegistryThatAsksForAPasswordGetsIt) {
  WriteText(folder_ / "htpasswd",  // alice:secret
            "alice:$2b$04$wQNriEdK7.5LuGL.MOHo2O3fB0/DSKbcxKA5L4FicXV0wewZPHILW\n");
  const Registry registry(folder_, Here("htpasswd"));
  const std::string image = registry.host() + "/tiny:1";
  const std::vector<std::string> nobody = {"DOCKER_CONFIG=" + Here("none"), "HOME=" + Here("none")};
  EXPECT_EQ(Build({"-t", image, "--insecure"}, "", nobody).code, 3);
  const Ran wrong = Build(
      {"-t", image, "--insecure", "--username", "alice", "--password", "Tr0ub4dor"}, "", nobody);
  EXPECT_EQ(wrong.code, 3);
  EXPECT_THAT(wrong.err, testing::Not(HasSubstr("Tr0ub4dor")));
  const Ran right = Build({"-t", image, "--insecure", "--username", "alice", "--password-stdin"},
                          "secret\n", nobody);
  EXPECT_EQ(right.code, 0) << right.err;
}

TEST_F(BuildProgramTest, ARegistryThatIsNotThereIsANetworkError) {
  std::string host;
  { host = Registry(folder_).host(); }
  const Ran ran = Build({"-t", host + "/tiny:1", "--insecure"});
  EXPECT_EQ(ran.code, 6) << ran.err;
  EXPECT_THAT(ran.err, HasSubstr(host));
}

TEST_F(BuildProgramTest, ABaseStandsOnTop) {
  ASSERT_EQ(Build({"-t", "base:1", "-o", Here("base")}).code, 0);
  const Ran ran = Build({"-t", "tiny:enc", "-o", Here("layout"), "--encryption-key",
                         PublicKey("ec-p384"), "--base", "oci:" + Here("base") + ":1"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const Json manifest = ManifestOf(Here("layout")), base = ManifestOf(Here("base"));
  ASSERT_EQ(manifest["layers"].size(), 6u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(manifest["layers"][3 + i], base["layers"][i]);
  const Json config = BlobJson(Here("layout"), manifest["config"]["digest"]);
  EXPECT_EQ(config["rootfs"]["diff_ids"].size(), 6u);
}

TEST_F(BuildProgramTest, BadInputNamesItselfAndLeavesNothing) {
  const std::string layout = Here("layout");
  WriteText(folder_ / "NoFrom", "SYSTEM x\n");
  WriteText(folder_ / "Missing", "FROM ./absent.gguf\n");
  WriteText(folder_ / "noise", "noise");
  const struct {
    std::vector<std::string> arguments;
    int code;
    const char* text;
  } cases[] = {
      {{"-f", Here("NoFrom")}, 1, "no FROM line"},
      {{"-f", Here("absent")}, 4, "Modelfile"},
      {{"--encryption-key", Here("absent.pem")}, 4, "absent.pem"},
      {{"--encryption-key", Here("noise")}, 1, "noise"},
      {{"--encryption-key", Shared("rsa-2048/private.pem")}, 1, "private"},
      {{"--base", "oci:" + Here("absent")}, 1, "no image layout"},
  };
  for (const auto& bad : cases) {
    std::vector<std::string> arguments = bad.arguments;
    arguments.insert(arguments.end(), {"-t", "tiny:1", "-o", layout});
    const Ran ran = Build(arguments);
    EXPECT_EQ(ran.code, bad.code) << ran.err;
    EXPECT_THAT(ran.err, HasSubstr(bad.text));
    EXPECT_EQ(BlobsOf(layout).size(), 0u);
  }
  EXPECT_NE(Build({"-f", Here("Missing"), "-t", "tiny:1", "-o", layout}).code, 0);
}

TEST_F(BuildProgramTest, AFullDiskLeavesNothing) {
  const std::string layout = Here("small");
  fs::create_directory(layout);
  ASSERT_EQ(mount("tmpfs", layout.c_str(), "tmpfs", 0, "size=2m"), 0) << "needs root";
  const Ran ran = Build({"-t", "tiny:enc", "-o", layout, "--encryption-key", PublicKey("ec-p384")});
  const auto blobs = BlobsOf(layout);
  umount2(layout.c_str(), MNT_DETACH);
  EXPECT_EQ(ran.code, 1);
  EXPECT_THAT(ran.err, HasSubstr("No space left on device"));
  EXPECT_THAT(ran.err, HasSubstr("tiny.gguf"));
  EXPECT_EQ(blobs, std::vector<std::string>());
}

// A model that is large enough to be caught at work.
class CancelTest : public BuildProgramTest, public testing::WithParamInterface<int> {
 protected:
  static void SetUpTestSuite() {
    BuildProgramTest::SetUpTestSuite();
    Must({PROJECT_SOURCE_DIR "/scripts/make-tiny-gguf", Shared("large.gguf"), "--pad-mib", "192"});
    WriteText(Shared("Large"), "FROM ./large.gguf\n");
  }

  // Starts a build, and sends the signal when a file of 8 MiB is below `folder`. The
  // build stands back, so that it is not at its end before it is looked at again.
  void CancelWhileWriting(const fs::path& folder, const std::vector<std::string>& arguments) {
    std::vector<std::string> command = {"nice",  "-n", "19",           KAPSULE_CTL,
                                        "build", "-f", Shared("Large")};
    command.insert(command.end(), arguments.begin(), arguments.end());
    command.insert(command.end(), {"--encryption-key", PublicKey("ec-p384"), Shared("")});
    Process build(folder_.path(), command);
    while (build.running() && LargestFile(folder) < 8 << 20)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ASSERT_TRUE(build.running()) << build.err();
    build.Signal(GetParam());
    EXPECT_EQ(build.Wait(), 130) << build.err();
    EXPECT_THAT(build.err(), HasSubstr("nothing was published"));
  }

  static uintmax_t LargestFile(const fs::path& folder) {
    uintmax_t largest = 0;
    std::error_code error;
    for (auto at = fs::recursive_directory_iterator(folder, error);
         !error && at != fs::recursive_directory_iterator(); at.increment(error)) {
      std::error_code gone;
      const uintmax_t size = at->is_regular_file(gone) ? at->file_size(gone) : 0;
      if (!gone) largest = std::max(largest, size);
    }
    return largest;
  }
};
INSTANTIATE_TEST_SUITE_P(Signals, CancelTest, testing::Values(SIGINT, SIGTERM));

TEST_P(CancelTest, ASignalLeavesNothingInALayout) {
  const fs::path layout = Here("layout");
  CancelWhileWriting(layout, {"-t", "tiny:enc", "-o", layout});
  EXPECT_EQ(BlobsOf(layout), std::vector<std::string>());
  EXPECT_FALSE(fs::exists(layout / "index.json"));
}

TEST_P(CancelTest, ASignalLeavesNoImageAndNoUploadInARegistry) {
  const Registry registry(folder_);
  const std::string image = registry.host() + "/tiny:enc";
  CancelWhileWriting(Here("registry"), {"-t", image, "--insecure"});
  EXPECT_EQ(Ctl({"inspect", image, "--insecure"}).code, 4);
  for (int i = 0; i < 600 && LargestFile(Here("registry")) > 1 << 20; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_LE(LargestFile(Here("registry")), 1u << 20);
}

}  // namespace
}  // namespace kapsule::ctl
