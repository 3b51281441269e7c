#include "core/blob/layer_reader.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

#include "core/archive/index_reader.h"
#include "core/blob/direct_file.h"

namespace kapsule::blob {
namespace {

// Ciphertext on its way through Read().
constexpr uint64_t kPiece = 1 << 20;

constexpr size_t kOwnPages = 1 << 20;
constexpr size_t kOwnOpeners = 4;

uint64_t NextId() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

// Before anything is done with the key: tags that another key opens too would
// otherwise pass it for the layer's.
absl::Status CheckCommitment(const crypt::LayerKey& key, const archive::IndexHeader& header) {
  ASSIGN_OR_RETURN(const crypt::Commitment mine, crypt::CommitmentTo(key, header.salt));
  if (CRYPTO_memcmp(mine.data(), header.commitment.data(), mine.size()) != 0)
    return PermissionDenied(
        "the unwrapped key is not this layer's: its header commits to another key");
  return absl::OkStatus();
}

}  // namespace

struct LayerReader::State {
  State(std::unique_ptr<ReaderAt> blob, const oci::IndexRef& index_ref,
        const archive::IndexHeader& checked, std::optional<crypt::LayerKey> layer_key,
        const Shared& shared)
      : source(std::move(blob)),
        ref(index_ref),
        header(checked),
        key(std::move(layer_key)),
        openers(shared.openers),
        index(*source, header, shared.pages, id) {}
  ~State() { openers->Forget(id); }

  const uint64_t id = NextId();
  const std::unique_ptr<ReaderAt> source;
  const oci::IndexRef ref;
  const archive::IndexHeader header;
  const std::optional<crypt::LayerKey> key;
  const std::shared_ptr<OpenerPool> openers;
  const archive::IndexReader index;
};

LayerReader::LayerReader(std::unique_ptr<State> state) : state_(std::move(state)) {}
LayerReader::~LayerReader() = default;

absl::StatusOr<std::unique_ptr<LayerReader>> LayerReader::Open(std::unique_ptr<ReaderAt> source,
                                                               const oci::IndexRef& ref,
                                                               std::optional<crypt::LayerKey> key) {
  return Open(
      std::move(source), ref, std::move(key),
      {std::make_shared<archive::PageCache>(kOwnPages), std::make_shared<OpenerPool>(kOwnOpeners)});
}

absl::StatusOr<std::unique_ptr<LayerReader>> LayerReader::Open(std::unique_ptr<ReaderAt> source,
                                                               const oci::IndexRef& ref,
                                                               std::optional<crypt::LayerKey> key,
                                                               const Shared& shared) {
  ASSIGN_OR_RETURN(const archive::IndexHeader header, archive::ReadHeader(*source, ref));
  if (header.encrypted != key.has_value())
    return FailedPrecondition("layer is {}encrypted, and {} key was given",
                              header.encrypted ? "" : "not ", key ? "a" : "no");
  if (key) RETURN_IF_ERROR(CheckCommitment(*key, header));
  auto state = std::make_unique<State>(std::move(source), ref, header, std::move(key), shared);
  std::unique_ptr<LayerReader> reader(new LayerReader(std::move(state)));
  if (header.encrypted) RETURN_IF_ERROR(reader->BorrowOpener().status());
  return reader;
}

const archive::IndexHeader& LayerReader::header() const { return state_->header; }

absl::StatusOr<archive::Toc> LayerReader::ReadToc() const {
  ASSIGN_OR_RETURN(const Bytes toc, ReadTocBytes());
  return ParseToc(toc);
}

absl::StatusOr<Bytes> LayerReader::ReadTocBytes() const {
  const archive::IndexHeader& h = state_->header;
  Bytes toc(h.toc_length);
  RETURN_IF_ERROR(Read(h.tar_length, toc));
  ASSIGN_OR_RETURN(const oci::Digest digest, StoredDigest(h.tar_length, toc));
  if (digest != h.toc_digest)
    return DataLoss("toc of {} bytes at byte {} of the layer does not match the header",
                    h.toc_length, h.tar_length);
  return toc;
}

absl::StatusOr<archive::Toc> LayerReader::ParseToc(ByteSpan toc) const {
  return archive::ParseToc(toc, state_->header.tar_length);
}

// The SHA-256 of `plain` as it is stored, by encrypting it again: what was
// verified and what is hashed cannot differ.
absl::StatusOr<oci::Digest> LayerReader::StoredDigest(uint64_t offset, ByteSpan plain) const {
  if (!state_->key) return oci::Digest::Of(plain);
  ASSIGN_OR_RETURN(const Borrowed opener, BorrowOpener());
  Bytes stored(std::min<uint64_t>(plain.size(), kPiece));
  oci::Hasher hasher;
  for (; !plain.empty(); plain = plain.subspan(std::min(stored.size(), plain.size()))) {
    const MutableByteSpan piece =
        MutableByteSpan(stored).first(std::min(stored.size(), plain.size()));
    RETURN_IF_ERROR(opener->Crypt(offset, plain.first(piece.size()), piece));
    hasher.Update(piece);
    offset += piece.size();
  }
  return hasher.Finish();
}

absl::Status LayerReader::Read(uint64_t offset, MutableByteSpan out) const {
  const uint64_t covered = state_->header.covered_length;
  absl::Status status;
  if (offset > covered || out.size() > covered - offset)
    status = absl::OutOfRangeError(
        fmt::format("{} bytes at byte {} of a layer of {}", out.size(), offset, covered));
  else if (state_->key)
    status = ReadDecrypted(offset, out);
  else
    status = state_->source->ReadAt(offset, out);
  if (!status.ok()) std::fill(out.begin(), out.end(), std::byte{0});
  return status;
}

absl::Status LayerReader::ReadDecrypted(uint64_t offset, MutableByteSpan out) const {
  if (out.empty()) return absl::OkStatus();
  const archive::IndexHeader& header = state_->header;
  ASSIGN_OR_RETURN(const Borrowed opener, BorrowOpener());
  const uint64_t largest = std::min<uint64_t>(ChunksOf(header, offset, out.size()).size(),
                                              std::max<uint64_t>(kPiece, header.chunk_size));
  AlignedBuffer buffer(largest);
  std::vector<archive::Tag> tags(CeilDiv(largest, header.chunk_size));
  while (!out.empty()) {
    const uint64_t first = AlignDown(offset, header.chunk_size);
    const size_t piece = std::min<uint64_t>(first + largest - offset, out.size());
    const ChunkRange range = ChunksOf(header, offset, piece);
    const MutableByteSpan stored = buffer.bytes().first(range.size());
    const std::span<archive::Tag> wanted = std::span(tags).first(range.count);
    RETURN_IF_ERROR(ReadTags(range.first, wanted));
    RETURN_IF_ERROR(state_->source->ReadAt(range.begin, stored));
    RETURN_IF_ERROR(opener->Open(range, stored, wanted, offset, out.first(piece)));
    offset += piece;
    out = out.subspan(piece);
  }
  return absl::OkStatus();
}

uint64_t LayerReader::id() const { return state_->id; }

const ReaderAt& LayerReader::source() const { return *state_->source; }

absl::Status LayerReader::ReadTags(uint64_t first, std::span<archive::Tag> out) const {
  return state_->index.ReadTags(first, out);
}

absl::StatusOr<LayerReader::Borrowed> LayerReader::BorrowOpener() const {
  if (!state_->key) return FailedPrecondition("the layer is not encrypted: it has no keys");
  OpenerPool& pool = *state_->openers;
  std::unique_ptr<ChunkOpener> opener = pool.Take(state_->id);
  if (opener == nullptr) {
    ASSIGN_OR_RETURN(opener, ChunkOpener::Make(*state_->key, state_->header));
  }
  return Borrowed(pool, state_->id, std::move(opener));
}

LayerReader::Borrowed::~Borrowed() {
  if (opener_ != nullptr) pool_.GiveBack(layer_, std::move(opener_));
}

bool LayerReader::SameAs(const std::optional<crypt::LayerKey>& other,
                         const oci::IndexRef& ref) const {
  const std::optional<crypt::LayerKey>& mine = state_->key;
  if (mine.has_value() != other.has_value()) return false;
  const oci::Digest::Raw &root = ref.root.raw(), &my_root = state_->ref.root.raw();
  bool same = ref.offset == state_->ref.offset && ref.length == state_->ref.length;
  same &= CRYPTO_memcmp(root.data(), my_root.data(), root.size()) == 0;
  if (mine) {
    same &= mine->key.Equals(other->key.bytes());
    same &= mine->nonce.Equals(other->nonce.bytes());
  }
  return same;
}

}  // namespace kapsule::blob
