// BlobFetcher with a process that is this program again.
#include "snapshotter/blob_fetcher.h"

#include <absl/time/clock.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <future>

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

void Answer(int control, const v1::FetchRequest& request) {
  const UniqueFd file(open("/dev/null", O_RDONLY | O_CLOEXEC));
  std::vector<int> fds;
  if (request.has_open()) fds.push_back(file.get());
  control::SendFetchReply(control, control::MakeFetchReply(request.id(), absl::OkStatus()), fds)
      .IgnoreError();
}

// kapsule-fetch, which has every blob: notes in the file `notes` what it is asked. What
// it is asked while there is a file "hold" beside that one, it answers when it is asked
// for numbers.
void Fetch(int control, const char* notes) {
  const std::filesystem::path hold = std::filesystem::path(notes).replace_filename("hold");
  std::vector<v1::FetchRequest> held;
  for (;;) {
    const auto request = control::ReceiveFetchRequest(control);
    if (!request.ok()) return;
    const std::string note = NoteOf(request->message);
    if (!note.empty()) std::ofstream(notes, std::ios::app) << note << "\n";
    if (request->message.has_get_stats()) {
      for (const v1::FetchRequest& one : held) Answer(control, one);
      held.clear();
    } else if (std::filesystem::exists(hold)) {
      held.push_back(request->message);
      continue;
    }
    Answer(control, request->message);
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
  static absl::Time Soon() { return absl::Now() + absl::Seconds(30); }
  template <typename Condition>
  static bool Comes(const Condition& condition) {
    const absl::Time deadline = Soon();
    while (!condition() && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(5));
    return condition();
  }
  bool Starts() {
    if (!Comes([&] { return handed_over_ == 1; })) return false;
    absl::SleepFor(absl::Seconds(1));  // and nothing is due
    return true;
  }
  std::vector<std::string> Notes() const {
    std::ifstream file(folder_ / "notes");
    std::vector<std::string> notes;
    for (std::string note; std::getline(file, note);) notes.push_back(note);
    return notes;
  }

  bool AreNoted(const std::vector<std::string>& notes) const {
    return Comes([&] { return Notes() == notes; });
  }

  // From now on kapsule-fetch is slow; and what it was asked since is answered.
  void Hold() const { std::ofstream(folder_ / "hold") << "x"; }
  void EndHold() const { std::filesystem::remove(folder_ / "hold"); }
  void AnswerHeld() { EXPECT_TRUE(fetcher_->Stats(Soon()).ok()); }
  std::future<absl::Status> BeginOpen() {
    return std::async(std::launch::async,
                      [this] { return fetcher_->Open(blob_, Soon()).status(); });
  }

  // The opening, which kapsule-fetch has not answered yet.
  std::future<absl::Status> CloseDuringItsOpening() {
    EXPECT_TRUE(Starts());
    Hold();
    std::future<absl::Status> opening = BeginOpen();
    EXPECT_TRUE(AreNoted({"open"}));
    EndHold();
    fetcher_->Close(blob_.digest);
    return opening;
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

TEST_F(BlobFetcherTest, WhatIsClosedDuringItsOpeningDoesNotStayOpen) {
  std::future<absl::Status> opening = CloseDuringItsOpening();
  ASSERT_TRUE(AreNoted({"open", "close"}));
  // The opening was begun there only after that.
  AnswerHeld();
  EXPECT_TRUE(absl::IsUnavailable(opening.get())) << "the caller is to look anew";
  EXPECT_THAT(Notes(), ElementsAre("open", "close", "close"));
  fetcher_->Close(blob_.digest);
  EXPECT_THAT(Notes(), ElementsAre("open", "close", "close"));

  EXPECT_TRUE(fetcher_->Open(blob_, Soon()).ok());
  fetcher_->Close(blob_.digest);
  EXPECT_THAT(Notes(), ElementsAre("open", "close", "close", "open", "close"));
}

TEST_F(BlobFetcherTest, AnOpeningThatWasClosedLeavesALaterOneOpen) {
  std::future<absl::Status> opening = CloseDuringItsOpening();
  EXPECT_TRUE(fetcher_->Open(blob_, Soon()).ok());
  AnswerHeld();
  EXPECT_TRUE(absl::IsUnavailable(opening.get()));
  EXPECT_THAT(Notes(), ElementsAre("open", "close", "open"));
  fetcher_->Close(blob_.digest);
  EXPECT_THAT(Notes(), ElementsAre("open", "close", "open", "close"));
}

TEST_F(BlobFetcherTest, AnOpeningComesAfterTheClosingThatIsUnderWay) {
  ASSERT_TRUE(Starts());
  ASSERT_TRUE(fetcher_->Open(blob_, Soon()).ok());
  Hold();
  std::future<void> closing =
      std::async(std::launch::async, [this] { fetcher_->Close(blob_.digest); });
  ASSERT_TRUE(AreNoted({"open", "close"}));
  EndHold();
  std::future<absl::Status> opening = BeginOpen();
  EXPECT_EQ(opening.wait_for(std::chrono::milliseconds(300)), std::future_status::timeout);
  EXPECT_THAT(Notes(), ElementsAre("open", "close"));
  AnswerHeld();
  closing.get();
  EXPECT_TRUE(opening.get().ok());
  EXPECT_THAT(Notes(), ElementsAre("open", "close", "open"));
}

TEST_F(BlobFetcherTest, WhatIsOpenedAgainTooLateLeavesALaterOpeningOpen) {
  ASSERT_TRUE(Starts());
  ASSERT_TRUE(fetcher_->Open(blob_, Soon()).ok());
  Hold();
  fetcher_->GiveFilesAgain();
  ASSERT_TRUE(Comes([&] { return Notes().size() > 1; }));
  EndHold();
  fetcher_->Close(blob_.digest);
  Hold();
  std::future<absl::Status> opening = BeginOpen();
  ASSERT_TRUE(Comes([&] { return Notes().back() == "open"; }));
  absl::SleepFor(OpenBlobs::kFirstPatience + OpenBlobs::kPatience);  // then it is given up
  EndHold();
  AnswerHeld();
  EXPECT_TRUE(opening.get().ok());
  const std::vector<std::string> notes = Notes();
  EXPECT_EQ(std::count(notes.begin(), notes.end(), "close"), 1);
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

TEST_F(BlobFetcherTest, AKapsuleFuseThatTookOverIsGivenTheFilesAgain) {
  ASSERT_TRUE(Starts());
  ASSERT_TRUE(fetcher_->Open(blob_, Soon()).ok());
  fetcher_->GiveFilesAgain();
  EXPECT_TRUE(Comes([&] { return files_ == 1; }));
  EXPECT_EQ(handed_over_, 1) << "it has the socket";
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
