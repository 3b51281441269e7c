#include "core/crypt/sha256_lanes.h"

#include <gtest/gtest.h>
#include <openssl/evp.h>

#include <random>

namespace kapsule::crypt {
namespace {

std::string OpensslDigestOf(ByteSpan bytes) {
  Sha256::Digest digest;
  EVP_Digest(bytes.data(), bytes.size(), reinterpret_cast<unsigned char*>(digest.data()), nullptr,
             EVP_sha256(), nullptr);
  return ToHex(digest);
}

Bytes RandomBytes(std::mt19937& random, size_t size) {
  Bytes bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// Every lane takes bytes of its own before those that all of them take.
struct Lanes {
  explicit Lanes(size_t count) : hashes(count), taken(count) {
    for (Sha256& hash : hashes) pointers.push_back(&hash);
  }
  void TakeOwn(size_t lane, const Bytes& bytes) {
    hashes[lane].Update(bytes);
    taken[lane].insert(taken[lane].end(), bytes.begin(), bytes.end());
  }
  void TakeAll(ByteSpan bytes) {
    UpdateAll(pointers, bytes);
    for (Bytes& lane : taken) lane.insert(lane.end(), bytes.begin(), bytes.end());
  }
  void ExpectOpensslsDigests() {
    for (size_t i = 0; i < hashes.size(); ++i)
      EXPECT_EQ(ToHex(hashes[i].Finish()), OpensslDigestOf(taken[i])) << "lane " << i;
  }

  std::vector<Sha256> hashes;
  std::vector<Sha256*> pointers;
  std::vector<Bytes> taken;
};

// FIPS 180-4's examples and the empty message.
TEST(Sha256LanesTest, GivesTheDigestsOfTheStandardInEveryLane) {
  const std::pair<std::string, std::string> vectors[] = {
      {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
      {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
      {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
       "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
      {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmno"
       "ijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
       "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"},
      {std::string(1'000'000, 'a'),
       "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"}};
  for (const auto& [message, digest] : vectors) {
    for (size_t count = 1; count <= 7; ++count) {
      Lanes lanes(count);
      UpdateAll(lanes.pointers, AsBytes(message));
      for (Sha256& hash : lanes.hashes) EXPECT_EQ(ToHex(hash.Finish()), digest) << count;
    }
  }
}

TEST(Sha256LanesTest, EveryLengthAndOffsetAgreesWithOpenssl) {
  std::mt19937 random(1);
  const Bytes bytes = RandomBytes(random, 400);
  for (size_t size = 0; size <= 300; ++size) {
    for (const size_t offset : {0, 1, 15, 64, 97}) {
      Lanes lanes(3);
      lanes.TakeAll(ByteSpan(bytes).subspan(offset, size));
      lanes.ExpectOpensslsDigests();
    }
  }
}

// In step by whole blocks, in step inside a block, and out of step.
TEST(Sha256LanesTest, LanesOfDifferentPastsKeepTheirOwnDigests) {
  std::mt19937 random(2);
  for (int round = 0; round < 300; ++round) {
    Lanes lanes(1 + random() % 5);
    const size_t unit = std::array{64u, 64u, 1u, 32u}[round % 4];
    const size_t common = round % 3 == 0 ? random() % 64 : 0;
    for (size_t i = 0; i < lanes.hashes.size(); ++i)
      lanes.TakeOwn(i, RandomBytes(random, common + unit * (random() % 5)));
    for (size_t parts = random() % 6; parts > 0; --parts)
      lanes.TakeAll(RandomBytes(random, random() % (parts % 2 == 0 ? 70 : 5000)));
    lanes.ExpectOpensslsDigests();
  }
}

TEST(Sha256LanesTest, CountsMoreThan32BitsOfLength) {
  const Bytes bytes(1 << 20, std::byte{7});
  Lanes lanes(2);
  const auto openssl =
      std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)>(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  ASSERT_EQ(EVP_DigestInit_ex(openssl.get(), EVP_sha256(), nullptr), 1);
  for (int mib = 0; mib < 520; ++mib) {  // 2^32 bits are 512 MiB
    UpdateAll(lanes.pointers, bytes);
    ASSERT_EQ(EVP_DigestUpdate(openssl.get(), bytes.data(), bytes.size()), 1);
  }
  Sha256::Digest digest;
  EVP_DigestFinal_ex(openssl.get(), reinterpret_cast<unsigned char*>(digest.data()), nullptr);
  for (Sha256& hash : lanes.hashes) EXPECT_EQ(ToHex(hash.Finish()), ToHex(digest));
}

TEST(Sha256LanesTest, ACopyGoesOnByItself) {
  std::mt19937 random(3);
  const Bytes begin = RandomBytes(random, 200), end = RandomBytes(random, 200);
  Sha256 first;
  first.Update(begin);
  Sha256 second = first;
  UpdateAll(std::array{&first, &second}, end);
  second.Update(begin);
  Bytes whole = begin;
  whole.insert(whole.end(), end.begin(), end.end());
  EXPECT_EQ(ToHex(first.Finish()), OpensslDigestOf(whole));
  whole.insert(whole.end(), begin.begin(), begin.end());
  EXPECT_EQ(ToHex(second.Finish()), OpensslDigestOf(whole));
}

}  // namespace
}  // namespace kapsule::crypt
