#include "snapshotter/fetch/block_list.h"

#include <gtest/gtest.h>

namespace kapsule::fetch {
namespace {

BlockList Sample(uint64_t size) {
  BlockList list{oci::Digest::Of(AsBytes("root")), 123'456, 42, 1 << 20, BlockSet(size)};
  for (uint64_t block = 0; block < size; block += 3) list.blocks.Add(block);
  return list;
}

TEST(BlockSetTest, FindsWhatIsThereAndWhatIsNot) {
  BlockSet set(130);
  EXPECT_EQ(set.Next(true, 0), 130u);
  EXPECT_EQ(set.Next(false, 0), 0u);
  for (const uint64_t block : {0, 63, 64, 129}) EXPECT_TRUE(set.Add(block));
  EXPECT_FALSE(set.Add(64));
  EXPECT_EQ(set.count(), 4u);
  EXPECT_EQ(set.Next(true, 1), 63u);
  EXPECT_EQ(set.Next(true, 65), 129u);
  EXPECT_EQ(set.Next(false, 63), 65u);
  EXPECT_EQ(set.Next(false, 129), 130u);
  EXPECT_EQ(set.Next(true, 1000), 130u);
  EXPECT_TRUE(set.Remove(63));
  EXPECT_FALSE(set.Remove(63));
  EXPECT_EQ(set.count(), 3u);
}

TEST(BlockListTest, ComesBackAsItWas) {
  for (const uint64_t size : {1, 63, 64, 65, 5000}) {
    const BlockList list = Sample(size);
    const auto got = BlockList::Decode(list.Encode());
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(got->root, list.root);
    EXPECT_EQ(got->blob_size, list.blob_size);
    EXPECT_EQ(got->inode, list.inode);
    EXPECT_EQ(got->block_size, list.block_size);
    EXPECT_EQ(got->blocks.size(), size);
    EXPECT_EQ(got->blocks.count(), list.blocks.count());
    EXPECT_EQ(got->Encode(), list.Encode());
  }
}

TEST(BlockListTest, AnyDamageAndAnyTruncationIsRefused) {
  const Bytes bytes = Sample(200).Encode();
  for (size_t i = 0; i < bytes.size(); ++i) {
    Bytes damaged = bytes;
    damaged[i] ^= std::byte{4};
    EXPECT_FALSE(BlockList::Decode(damaged).ok()) << i;
    EXPECT_FALSE(BlockList::Decode(ByteSpan(bytes).first(i)).ok()) << i;
  }
}

}  // namespace
}  // namespace kapsule::fetch
