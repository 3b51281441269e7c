// The covered range of one layer, verified and decrypted on demand.
#pragma once

#include <memory>
#include <optional>

#include "core/archive/index.h"
#include "core/archive/page_cache.h"
#include "core/archive/toc.h"
#include "core/base/file.h"
#include "core/blob/chunk_opener.h"
#include "core/crypt/layer_cipher.h"
#include "core/oci/annotations.h"

namespace kapsule::blob {

// Thread-safe: any number of threads may read together. Holds the layer key.
class LayerReader {
 public:
  // What many readers use together, so that a further one costs next to nothing.
  struct Shared {
    std::shared_ptr<archive::PageCache> pages;
    std::shared_ptr<OpenerPool> openers;
  };
  // `source` is the stored blob; `ref` comes from the private options for an
  // encrypted layer, from the annotation for a plain one. Checks the header
  // against `ref` and the blob's size against the header; reads no other page.
  //   DataLoss            header, size or root do not agree
  //   PermissionDenied    the key is not the one that the header commits to
  //   FailedPrecondition  key given and header not encrypted, or the reverse
  static absl::StatusOr<std::unique_ptr<LayerReader>> Open(std::unique_ptr<ReaderAt> source,
                                                           const oci::IndexRef& ref,
                                                           std::optional<crypt::LayerKey> key,
                                                           const Shared& shared);
  // With a small cache of its own.
  static absl::StatusOr<std::unique_ptr<LayerReader>> Open(std::unique_ptr<ReaderAt> source,
                                                           const oci::IndexRef& ref,
                                                           std::optional<crypt::LayerKey> key);
  ~LayerReader();

  const archive::IndexHeader& header() const;
  // Of this object alone, in all the process's life: a key for caches.
  uint64_t id() const;

  // Reads the TOC, checks its digest (and its chunks), parses and checks it.
  absl::StatusOr<archive::Toc> ReadToc() const;
  // The same in two steps, the first all I/O and the second all CPU.
  absl::StatusOr<Bytes> ReadTocBytes() const;
  absl::StatusOr<archive::Toc> ParseToc(ByteSpan toc) const;

  // Fills `out` with plaintext from `offset` of the covered range on. Every
  // chunk is verified before one byte of it is decrypted into `out`.
  //   DataLoss    a chunk or index page is bad: names the chunk; `out` is zeroed
  //   OutOfRange  beyond the covered range
  absl::Status Read(uint64_t offset, MutableByteSpan out) const;

  // The parts of Read(), for those who read and keep ciphertext in their own way.
  // The blob as it is stored:
  const ReaderAt& source() const;
  // Tags of chunks first, first + 1, …; errors as IndexReader::ReadTags(). A layer
  // that is not encrypted has none.
  absl::Status ReadTags(uint64_t first, std::span<archive::Tag> out) const;
  // An opener for one thread, given back at the end of `Borrowed`, which the
  // reader outlives. Only of an encrypted layer.
  class Borrowed {
   public:
    Borrowed(Borrowed&&) = default;
    Borrowed& operator=(Borrowed&&) = delete;
    ~Borrowed();
    ChunkOpener* operator->() const { return opener_.get(); }

   private:
    friend class LayerReader;
    Borrowed(OpenerPool& pool, uint64_t layer, std::unique_ptr<ChunkOpener> opener)
        : pool_(pool), layer_(layer), opener_(std::move(opener)) {}
    OpenerPool& pool_;
    const uint64_t layer_;
    std::unique_ptr<ChunkOpener> opener_;
  };
  absl::StatusOr<Borrowed> BorrowOpener() const;

  // True where `other` opens the same layer: key, nonce and root are compared
  // in constant time.
  bool SameAs(const std::optional<crypt::LayerKey>& other, const oci::IndexRef& ref) const;

 private:
  struct State;
  explicit LayerReader(std::unique_ptr<State> state);
  absl::Status ReadDecrypted(uint64_t offset, MutableByteSpan out) const;
  absl::StatusOr<oci::Digest> StoredDigest(uint64_t offset, ByteSpan plain) const;
  const std::unique_ptr<State> state_;
};

}  // namespace kapsule::blob
