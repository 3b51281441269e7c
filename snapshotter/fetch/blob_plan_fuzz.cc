// What is forgotten, against a reader that hears of it late: the bytes are what
// happens next. No block is punched that the reader takes for there, or will by what
// is on its way to it, and none is both there and about to be punched.
#include <algorithm>
#include <cstdlib>
#include <deque>
#include <iterator>
#include <optional>
#include <set>

#include "snapshotter/fetch/blob_plan.h"

namespace {

using namespace kapsule::fetch;

constexpr uint64_t kBlocks = 16;
const absl::Time kNow = absl::FromUnixSeconds(1'000'000);
const absl::Time kLater = kNow + absl::Seconds(60);

void Require(bool condition) {
  if (!condition) std::abort();
}

class World {
 public:
  World() { Open(); }

  void Step(unsigned what, uint64_t block) {
    const uint64_t other = (block * 7 + 3) % kBlocks;
    switch (what) {
      case 0:
        plan_.Want({block, std::min<uint64_t>(3, kBlocks - block)}, kNow, kLater);
        return;
      case 1:
        return Fetch(Need::kWanted);
      case 2:
        return Fetch(Need::kFill);
      case 3:
        ++question_;
        return Ask(plan_.StartGoing(1 + block % 4, question_));
      case 4:
        if (plan_.going().empty()) return;
        ++question_;
        return Ask(plan_.going());
      case 5:
        return Hear();
      case 6:
        return LetGo(other);
      case 7:
        return Answer();
      case 8:
        plan_.Gone(punched_);
        return punched_.clear();
      case 9:
        plan_.Age();
        return plan_.Age();
      case 10:
        return SayWhatIsThere();
      case 11:
        if (punched_.empty()) Close(block % 2 == 0);
        return;
      case 12:
        return Lose(block % 4);
      case 13:
        plan_.Lost(block);
        return;
      case 14:
        (void)(block % 2 == 0 ? plan_.Expire(kLater) : plan_.Abandon());
        return;
      default:
        Read(block);
    }
  }

  void Check() const {
    for (const Range& going : plan_.going()) Require(Absent(going));
    for (const Range& punched : punched_) Require(Absent(punched));
  }

 private:
  struct Drop {
    Range range;
    uint64_t question = 0;
  };
  struct Packet {  // to the reader
    std::optional<Drop> drop;
    BlockSet there{kBlocks};  // of a list of what is there
  };

  void Open() { plan_.Begin(BlockSet(kBlocks), StreamGuess(2, 4)); }
  void Close(bool forget) {
    plan_.Stay();
    if (!forget) return SayWhatIsThere();
    BlockSet there = plan_.there();  // as stored
    plan_ = BlobPlan();
    plan_.Begin(std::move(there), StreamGuess(2, 4));
    SayWhatIsThere();
  }
  bool Absent(Range range) const {
    for (uint64_t block = range.first; block < range.end(); ++block)
      if (plan_.there().Has(block)) return false;
    return true;
  }
  void Fetch(Need need) {
    const auto range = plan_.Next(need, 4);
    if (!range) return;
    for (uint64_t block = range->first; block < range->end(); ++block) plan_.Arrived(block);
    plan_.Landed(*range);
    SayWhatIsThere();
  }
  void SayWhatIsThere() { heard_later_.push_back({std::nullopt, plan_.there()}); }
  void Ask(const std::vector<Range>& ranges) {
    for (const Range& range : ranges) heard_later_.push_back({Drop{range, question_}});
  }

  // The reader.
  void Hear() {
    if (heard_later_.empty()) return;
    const Packet packet = std::move(heard_later_.front());
    heard_later_.pop_front();
    if (packet.drop) {
      for (uint64_t block = packet.drop->range.first; block < packet.drop->range.end(); ++block)
        readable_.Remove(block);
      return drops_.push_back(*packet.drop);
    }
    for (uint64_t block = 0; block < kBlocks; ++block)
      if (packet.there.Has(block)) readable_.Add(block);
  }
  void Read(uint64_t block) {  // begins one, or ends it
    if (reading_.erase(block) == 0 && readable_.Has(block)) reading_.insert(block);
  }
  void LetGo(uint64_t which) {
    if (drops_.empty()) return;
    const auto drop = std::next(drops_.begin(), static_cast<ptrdiff_t>(which % drops_.size()));
    for (const uint64_t block : reading_)
      if (drop->range.Holds(block) && !readable_.Has(block)) return;
    answers_.push_back(*drop);
    drops_.erase(drop);
  }
  void Answer() {
    if (answers_.empty()) return;
    const Drop answer = answers_.front();
    answers_.pop_front();
    const BlobPlan::LetGo let_go = plan_.Release(answer.range, answer.question);
    for (const Range& range : let_go.punch) {
      for (uint64_t block = range.first; block < range.end(); ++block) {
        Require(!readable_.Has(block) && !reading_.contains(block));
        for (const Packet& packet : heard_later_) Require(packet.drop || !packet.there.Has(block));
      }
      punched_.push_back(range);
    }
    if (!let_go.kept.empty()) SayWhatIsThere();
  }
  // What packets and processes do: one of the first is lost in either direction, a new
  // reader takes over what is on its way, or another connection begins.
  void Lose(uint64_t how) {
    if (how == 0 && !heard_later_.empty()) heard_later_.pop_front();
    if (how == 1 && !answers_.empty()) answers_.pop_front();
    if (how < 2) return;
    drops_.clear();
    reading_.clear();
    readable_ = BlockSet(kBlocks);
    if (how == 2) return;
    heard_later_.clear();
    answers_.clear();
  }

  BlobPlan plan_;
  uint64_t question_ = 0;
  std::vector<Range> punched_;
  std::deque<Packet> heard_later_;
  std::deque<Drop> drops_, answers_;
  std::set<uint64_t> reading_;
  BlockSet readable_{kBlocks};
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  World world;
  for (size_t i = 0; i < std::min<size_t>(size, 4096); ++i) {
    world.Step(data[i] >> 4, data[i] & 15);
    world.Check();
  }
  return 0;
}
