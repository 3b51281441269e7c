// BlobFetcher with a process that is this program again.
#include "snapshotter/blob_fetcher.h"

#include <absl/time/clock.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <fstream>

namespace kapsule::snapshotter {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::string_view kNotes = "--notes";

std::string NoteOf(const v1::FetchRequest& request) {
  switch (request.request_case()) {
    case v1::FetchRequest::kOpen:
      return "open";
    case v1::FetchRequest::kClose:
      return "close";
    case v1::FetchRequest::kForget:
      return "forget";
    default:
      return "";
  }
}

// kapsule-fetch, which has every blob: notes in the file `notes` what it is asked.
void Fetch(int control, const char* notes) {
  for (;;) {
    const auto request = control::ReceiveFetchRequest(control);
    if (!request.ok()) return;
    const std::string note = NoteOf(request->message);
    if (!note.empty()) std::ofstream(notes, std::ios::app) << note << "\n";
    const UniqueFd file(open("/dev/null", O_RDONLY | O_CLOEXEC));
    std::vector<int> fds;
    if (request->message.has_open()) fds.push_back(file.get());
    control::SendFetchReply(control,
                            control::MakeFetchReply(request->message.id(), absl::OkStatus()), fds)
        .IgnoreError();
  }
}

class BlobFetcherTest : public ::testing::Test {
 protected:
  BlobFetcherTest() {
    char name[] = "/tmp/kapsule-blob-fetcher-XXXXXX";
    folder_ = mkdtemp(name);
    blob_.digest = oci::Digest::Of(AsBytes("blob"));
    blob_.size = 1000;
    blob_.images = {"registry.example/a"};
    fetcher_ = std::make_unique<BlobFetcher>(BlobFetcher::Options{
        .program = std::filesystem::read_symlink("/proc/self/exe"),
        .arguments = {std::string(kNotes), folder_ / "notes"},
        .pid_file = folder_ / "pid",
        .hand_over =
            [this](const UniqueFd&) {
              ++handed_over_;
              return absl::OkStatus();
            },
        .blobs = {.credentials = [](const std::string&) { return std::nullopt; },
                  .use_file =
                      [this](const oci::Digest&, const UniqueFd&) {
                        ++files_;
                        return absl::OkStatus();
                      }}});
  }
  ~BlobFetcherTest() override {
    fetcher_ = nullptr;
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }
  static absl::Time Soon() { return absl::Now() + absl::Seconds(20); }
  template <typename Condition>
  static bool Comes(const Condition& condition) {
    const absl::Time deadline = Soon();
    while (!condition() && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(5));
    return condition();
  }
  bool Starts() {
    if (!Comes([&] { return handed_over_ == 1; })) return false;
    absl::SleepFor(absl::Milliseconds(200));  // and nothing is due
    return true;
  }
  std::vector<std::string> Notes() const {
    std::ifstream file(folder_ / "notes");
    std::vector<std::string> notes;
    for (std::string note; std::getline(file, note);) notes.push_back(note);
    return notes;
  }

  std::filesystem::path folder_;
  RemoteBlob blob_;
  std::atomic<int> handed_over_ = 0, files_ = 0;
  std::unique_ptr<BlobFetcher> fetcher_;
};

TEST_F(BlobFetcherTest, OfABlobThatItWasNotAskedForNothingIsSaid) {
  ASSERT_TRUE(Starts());
  fetcher_->Forget(blob_.digest);
  fetcher_->Close(blob_.digest);
  EXPECT_THAT(Notes(), IsEmpty());
  ASSERT_TRUE(fetcher_->Open(blob_, Soon()).ok());
  fetcher_->Forget(blob_.digest);
  fetcher_->Close(blob_.digest);
  fetcher_->Close(blob_.digest);
  EXPECT_THAT(Notes(), ElementsAre("open", "forget", "close"));
}

TEST_F(BlobFetcherTest, TheNextProcessHasItsFilesGivenToKapsuleFuse) {
  ASSERT_TRUE(Starts());
  ASSERT_TRUE(fetcher_->Open(blob_, Soon()).ok());
  EXPECT_EQ(files_, 0) << "whoever opens a layer brings it along";
  kill(fetcher_->pid(), SIGKILL);
  EXPECT_TRUE(Comes([&] { return files_ == 1; }));
  EXPECT_EQ(handed_over_, 2);
  // A new socket is another reason to doubt what is said of files.
  fetcher_->HandOverAgain();
  EXPECT_TRUE(Comes([&] { return handed_over_ == 3 && files_ == 2; }));
}

}  // namespace
}  // namespace kapsule::snapshotter

// The process is started with --control-fd N --notes FILE.
int main(int argc, char** argv) {
  if (argc == 5 && argv[3] == kapsule::snapshotter::kNotes) {
    kapsule::snapshotter::Fetch(std::atoi(argv[2]), argv[4]);
    return 0;
  }
  ::testing::InitGoogleMock(&argc, argv);
  return RUN_ALL_TESTS();
}
