#include "core/blob/layer_reader.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <openssl/crypto.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "core/archive/index_reader.h"
#include "core/blob/direct_file.h"

namespace kapsule::blob {
namespace {

// Ciphertext on its way, one buffer a thread: a request of 1 MiB and, where it
// is not aligned, the rest of the chunks at its ends.
constexpr size_t kBufferSize = 2 << 20;
constexpr size_t kMaxChunksAtOnce = kBufferSize / (4 << 10);

MutableByteSpan CiphertextBuffer() {
  thread_local AlignedBuffer buffer(kBufferSize);
  return buffer.bytes();
}

std::span<archive::Tag> TagBuffer() {
  thread_local std::array<archive::Tag, kMaxChunksAtOnce> tags;
  return tags;
}

// What one reading thread needs at a time.
struct Context {
  crypt::LayerCipher cipher;
  crypt::ChunkMac mac;
};

absl::StatusOr<std::unique_ptr<Context>> MakeContext(const crypt::LayerKey& key,
                                                     const archive::IndexHeader& header) {
  ASSIGN_OR_RETURN(crypt::LayerCipher cipher, crypt::LayerCipher::Create(key));
  ASSIGN_OR_RETURN(crypt::ChunkMac mac, crypt::ChunkMac::Create(key, header.salt, header.chunk_size,
                                                                header.covered_length));
  return std::make_unique<Context>(Context{std::move(cipher), std::move(mac)});
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
        const archive::IndexHeader& checked, std::optional<crypt::LayerKey> layer_key)
      : source(std::move(blob)),
        ref(index_ref),
        header(checked),
        key(std::move(layer_key)),
        index(*source, header) {}

  absl::StatusOr<std::unique_ptr<Context>> TakeContext() ABSL_LOCKS_EXCLUDED(mu);
  void GiveBack(std::unique_ptr<Context> context) ABSL_LOCKS_EXCLUDED(mu);
  absl::Status ReadDecrypted(uint64_t offset, MutableByteSpan out);
  absl::Status ReadPiece(Context& context, uint64_t offset, MutableByteSpan out);
  absl::StatusOr<oci::Digest> StoredDigest(uint64_t offset, ByteSpan plain);

  // Constant after construction.
  const std::unique_ptr<ReaderAt> source;
  const oci::IndexRef ref;
  const archive::IndexHeader header;
  const std::optional<crypt::LayerKey> key;

  const archive::IndexReader index;

  absl::Mutex mu;
  std::vector<std::unique_ptr<Context>> idle ABSL_GUARDED_BY(mu);
};

absl::StatusOr<std::unique_ptr<Context>> LayerReader::State::TakeContext() {
  {
    const absl::MutexLock lock(&mu);
    if (!idle.empty()) {
      std::unique_ptr<Context> context = std::move(idle.back());
      idle.pop_back();
      return context;
    }
  }
  return MakeContext(*key, header);
}

void LayerReader::State::GiveBack(std::unique_ptr<Context> context) {
  const absl::MutexLock lock(&mu);
  idle.push_back(std::move(context));
}

absl::Status LayerReader::State::ReadDecrypted(uint64_t offset, MutableByteSpan out) {
  ASSIGN_OR_RETURN(std::unique_ptr<Context> context, TakeContext());
  absl::Status status;
  while (status.ok() && !out.empty()) {
    const uint64_t first = AlignDown(offset, header.chunk_size);
    const size_t piece = std::min<uint64_t>(first + kBufferSize - offset, out.size());
    status = ReadPiece(*context, offset, out.first(piece));
    offset += piece;
    out = out.subspan(piece);
  }
  GiveBack(std::move(context));
  return status;
}

// Reads the chunks that hold `out`, verifies each, then decrypts what is asked.
absl::Status LayerReader::State::ReadPiece(Context& context, uint64_t offset, MutableByteSpan out) {
  const uint64_t chunk_size = header.chunk_size;
  const uint64_t begin = AlignDown(offset, chunk_size);
  const uint64_t end = std::min(AlignUp(offset + out.size(), chunk_size), header.covered_length);
  const MutableByteSpan stored = CiphertextBuffer().first(end - begin);
  const std::span<archive::Tag> tags = TagBuffer().first(CeilDiv(stored.size(), chunk_size));
  RETURN_IF_ERROR(index.ReadTags(begin / chunk_size, tags));
  RETURN_IF_ERROR(source->ReadAt(begin, stored));
  for (size_t i = 0; i < tags.size(); ++i) {
    const uint64_t at = i * chunk_size;
    const ByteSpan chunk = stored.subspan(at, std::min(chunk_size, stored.size() - at));
    const absl::Status good = context.mac.Verify(begin / chunk_size + i, chunk, tags[i]);
    if (!good.ok())
      return Annotate(good, fmt::format("chunk {} at byte {} of the layer", begin / chunk_size + i,
                                        begin + at));
  }
  return context.cipher.Apply(offset, stored.subspan(offset - begin, out.size()), out);
}

// The SHA-256 of `plain` as it is stored, by encrypting it again: what was
// verified and what is hashed cannot differ.
absl::StatusOr<oci::Digest> LayerReader::State::StoredDigest(uint64_t offset, ByteSpan plain) {
  if (!key) return oci::Digest::Of(plain);
  ASSIGN_OR_RETURN(std::unique_ptr<Context> context, TakeContext());
  oci::Hasher hasher;
  absl::Status status;
  for (size_t at = 0; status.ok() && at < plain.size(); at += kBufferSize) {
    const ByteSpan in = plain.subspan(at, std::min(kBufferSize, plain.size() - at));
    const MutableByteSpan stored = CiphertextBuffer().first(in.size());
    status = context->cipher.Apply(offset + at, in, stored);
    hasher.Update(stored);
  }
  GiveBack(std::move(context));
  if (!status.ok()) return status;
  return hasher.Finish();
}

LayerReader::LayerReader(std::unique_ptr<State> state) : state_(std::move(state)) {}
LayerReader::~LayerReader() = default;

absl::StatusOr<std::unique_ptr<LayerReader>> LayerReader::Open(std::unique_ptr<ReaderAt> source,
                                                               const oci::IndexRef& ref,
                                                               std::optional<crypt::LayerKey> key) {
  ASSIGN_OR_RETURN(const archive::IndexHeader header, archive::ReadHeader(*source, ref));
  if (header.encrypted != key.has_value())
    return FailedPrecondition("layer is {}encrypted, and {} key was given",
                              header.encrypted ? "" : "not ", key ? "a" : "no");
  if (key) RETURN_IF_ERROR(CheckCommitment(*key, header));
  auto state = std::make_unique<State>(std::move(source), ref, header, std::move(key));
  if (header.encrypted) {
    ASSIGN_OR_RETURN(std::unique_ptr<Context> context, state->TakeContext());
    state->GiveBack(std::move(context));
  }
  return std::unique_ptr<LayerReader>(new LayerReader(std::move(state)));
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
  ASSIGN_OR_RETURN(const oci::Digest digest, state_->StoredDigest(h.tar_length, toc));
  if (digest != h.toc_digest)
    return DataLoss("toc of {} bytes at byte {} of the layer does not match the header",
                    h.toc_length, h.tar_length);
  return toc;
}

absl::StatusOr<archive::Toc> LayerReader::ParseToc(ByteSpan toc) const {
  return archive::ParseToc(toc, state_->header.tar_length);
}

absl::Status LayerReader::Read(uint64_t offset, MutableByteSpan out) const {
  const uint64_t covered = state_->header.covered_length;
  absl::Status status;
  if (offset > covered || out.size() > covered - offset)
    status = absl::OutOfRangeError(
        fmt::format("{} bytes at byte {} of a layer of {}", out.size(), offset, covered));
  else if (state_->key)
    status = state_->ReadDecrypted(offset, out);
  else
    status = state_->source->ReadAt(offset, out);
  if (!status.ok()) std::fill(out.begin(), out.end(), std::byte{0});
  return status;
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
