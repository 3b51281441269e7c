#include "snapshotter/fetch/stream_guess.h"

#include <gtest/gtest.h>

namespace kapsule::fetch {
namespace {

TEST(StreamGuessTest, OneWantIsNoStream) {
  StreamGuess guess(4, 64);
  guess.Wanted({10, 1});
  ASSERT_EQ(guess.streams().size(), 1u);
  EXPECT_EQ(guess.streams().front().end, 11u);
}

TEST(StreamGuessTest, TheWindowGrowsWithTheStreamToItsLimit) {
  StreamGuess guess(4, 64);
  guess.Wanted({10, 1});
  guess.Wanted({11, 1});
  EXPECT_EQ(guess.streams().front().end, 12u + 4);
  guess.Wanted({16, 1});  // behind all that was fetched ahead
  EXPECT_EQ(guess.streams().front().end, 17u + 8);
  uint64_t next = 17;
  for (int i = 0; i < 10; ++i) guess.Wanted({next = guess.streams().front().end, 1});
  EXPECT_EQ(guess.streams().front().window, 64u);
  EXPECT_EQ(guess.streams().front().end, next + 1 + 64);
}

TEST(StreamGuessTest, TheSameWantAgainIsNoProgress) {
  StreamGuess guess(4, 64);
  for (int i = 0; i < 5; ++i) guess.Wanted({10, 2});
  EXPECT_EQ(guess.streams().front().window, 0u);
}

TEST(StreamGuessTest, SeveralReadersAreToldApartAndTheOldestIsForgotten) {
  StreamGuess guess(4, 64);
  for (uint64_t i = 0; i < 3; ++i)
    for (uint64_t reader = 0; reader < 4; ++reader) guess.Wanted({reader * 1000 + i, 1});
  ASSERT_EQ(guess.streams().size(), 4u);
  for (const auto& stream : guess.streams()) EXPECT_EQ(stream.window, 8u);
  for (uint64_t at = 10'000; at < 30'000; at += 1000) guess.Wanted({at, 1});
  EXPECT_EQ(guess.streams().size(), 8u);
}

}  // namespace
}  // namespace kapsule::fetch
