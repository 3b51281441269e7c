#include "core/image/layer_writer.h"

#include <algorithm>

namespace kapsule::image {
namespace {

constexpr uint32_t kBlockSize = kPieceSize;  // so that a piece is a block
// Enough that a slow disk or network seldom lets the other stages wait.
constexpr uint64_t kMostPieces = 16;
// What is hashed, encrypted and tagged at once: it stays in the first caches.
constexpr size_t kStride = 64 * 1024;

enum StageNumber : size_t { kEncrypt, kHash, kUpload };

absl::StatusOr<archive::IndexHeader> HeaderFor(const LayerOptions& options) {
  archive::IndexHeader header;
  header.encrypted = options.encrypt;
  header.chunk_size = options.chunk_size;
  header.block_size = kBlockSize;
  header.tar_length = options.tar_length;
  header.toc_length = options.toc_length;
  const auto end = CheckedAdd(options.tar_length, options.toc_length);
  if (!end || *end > archive::kMaxCoveredLength)
    return InvalidArgument("a layer with a tar of {} bytes and a toc of {}: the limit is {} bytes",
                           options.tar_length, options.toc_length, archive::kMaxCoveredLength);
  if (options.toc_length > archive::kMaxTocBytes)
    return InvalidArgument("a layer with a toc of {} bytes: the limit is {}; use fewer files",
                           options.toc_length, archive::kMaxTocBytes);
  header.covered_length = AlignUp(*end, archive::kPageSize);
  // Every rule about the header stands in one place.
  RETURN_IF_ERROR(archive::IndexHeader::Decode(header.Encode()).status());
  return header;
}

}  // namespace

absl::StatusOr<uint64_t> StoredSize(const LayerOptions& options) {
  ASSIGN_OR_RETURN(const archive::IndexHeader header, HeaderFor(options));
  return archive::LayoutOf(header).blob_size;
}

LayerWriter::LayerWriter(LayerOptions options, archive::IndexHeader header,
                         std::unique_ptr<oci::BlobUpload> upload)
    : options_(std::move(options)),
      header_(header),
      upload_(std::move(upload)),
      index_(options_.temp_folder) {}

LayerWriter::~LayerWriter() = default;

absl::StatusOr<std::unique_ptr<LayerWriter>> LayerWriter::Start(
    LayerOptions options, std::unique_ptr<oci::BlobUpload> upload) {
  ASSIGN_OR_RETURN(const archive::IndexHeader header, HeaderFor(options));
  std::unique_ptr<LayerWriter> writer(
      new LayerWriter(std::move(options), header, std::move(upload)));
  RETURN_IF_ERROR(writer->Prepare());
  return writer;
}

absl::Status LayerWriter::Prepare() {
  if (options_.encrypt) {
    ASSIGN_OR_RETURN(key_, crypt::LayerKey::Generate());
    RETURN_IF_ERROR(FillRandom(header_.salt));
    ASSIGN_OR_RETURN(header_.commitment, crypt::CommitmentTo(*key_, header_.salt));
    ASSIGN_OR_RETURN(cipher_, crypt::LayerCipher::Create(*key_));
    ASSIGN_OR_RETURN(chunk_mac_, crypt::ChunkMac::Create(*key_, header_.salt, header_.chunk_size,
                                                         header_.covered_length));
    ASSIGN_OR_RETURN(hmac_, crypt::Hmac::Create(key_->key));
    plain_hash_.emplace();
    index_plaintext_.resize(kStride);
  }
  const uint64_t pieces = CeilDiv(archive::LayoutOf(header_).blob_size, kPieceSize);
  ASSIGN_OR_RETURN(pipeline_,
                   Pipeline::Start({[this](Piece& piece) { return Encrypt(piece); },
                                    [this](Piece& piece) { return HashStored(piece); },
                                    [this](Piece& piece) { return upload_->Write(piece.bytes()); }},
                                   std::min(kMostPieces, pieces)));
  return absl::OkStatus();
}

absl::Status LayerWriter::Encrypt(Piece& piece) {
  // Chunks larger than the stride are still tagged in one go.
  const size_t stride = piece.covered ? std::max<size_t>(kStride, header_.chunk_size) : kStride;
  for (size_t at = 0; at < piece.size; at += stride) {
    const MutableByteSpan part = piece.bytes().subspan(at, std::min(stride, piece.size - at));
    if (!piece.covered) {
      RETURN_IF_ERROR(HashIndex(piece.offset + at, part));
      continue;
    }
    const size_t other =
        piece.content_from > at ? std::min(piece.content_from - at, part.size()) : 0;
    HashPlain(part.first(other), false);
    HashPlain(part.subspan(other), true);
    RETURN_IF_ERROR(EncryptCovered(piece.offset + at, part, piece));
  }
  return absl::OkStatus();
}

void LayerWriter::HashPlain(ByteSpan plain, bool content) {
  std::array<crypt::Sha256*, 2> hashes;
  size_t count = 0;
  if (plain_hash_) hashes[count++] = &*plain_hash_;
  if (content) hashes[count++] = &content_hash_;
  UpdateAll(std::span(hashes).first(count), plain);
}

// In place, and the tags of its chunks.
absl::Status LayerWriter::EncryptCovered(uint64_t offset, MutableByteSpan bytes, Piece& piece) {
  if (!cipher_) return absl::OkStatus();
  RETURN_IF_ERROR(cipher_->Apply(offset, bytes, bytes));
  for (size_t at = 0; at < bytes.size(); at += header_.chunk_size) {
    const size_t length = std::min<size_t>(header_.chunk_size, bytes.size() - at);
    ASSIGN_OR_RETURN(const crypt::ChunkTag tag, chunk_mac_->Tag((offset + at) / header_.chunk_size,
                                                                bytes.subspan(at, length)));
    piece.tags.push_back(tag);
  }
  return absl::OkStatus();
}

// Of the index the ciphertext is chosen: the plaintext is what comes of it.
absl::Status LayerWriter::HashIndex(uint64_t offset, ByteSpan stored) {
  if (!cipher_) return absl::OkStatus();
  const MutableByteSpan plain = MutableByteSpan(index_plaintext_).first(stored.size());
  RETURN_IF_ERROR(cipher_->Apply(offset, stored, plain));
  plain_hash_->Update(plain);
  return absl::OkStatus();
}

absl::Status LayerWriter::HashStored(const Piece& piece) {
  crypt::Sha256 block;
  std::array<crypt::Sha256*, 3> hashes = {&stored_hash_};
  size_t count = 1;
  if (piece.covered) hashes[count++] = &block;
  if (hmac_) hashes[count++] = hmac_->message();
  UpdateAll(std::span(hashes).first(count), piece.bytes());
  if (piece.covered) RETURN_IF_ERROR(index_.AppendBlock(oci::Digest(block.Finish())));
  for (const crypt::ChunkTag& tag : piece.tags) RETURN_IF_ERROR(index_.AppendTag(tag));
  return absl::OkStatus();
}

absl::Status LayerWriter::Write(ByteSpan tar) {
  if (tar.size() > header_.tar_length - offset_)
    return Internal("a tar of more than the planned {} bytes", header_.tar_length);
  return Append(tar);
}

absl::StatusOr<MutableByteSpan> LayerWriter::Room() {
  if (piece_ == nullptr) {
    ASSIGN_OR_RETURN(piece_, pipeline_->Next());
    piece_->size = 0;
    piece_->offset = offset_;
    piece_->covered = covered_;
    piece_->content_from = in_content_ ? 0 : kPieceSize;
    piece_->tags.clear();
    RETURN_IF_ERROR(Report());
  }
  return piece_->room.subspan(piece_->size);
}

absl::Status LayerWriter::Filled(size_t size) {
  if (size > header_.tar_length - offset_)
    return Internal("a tar of more than the planned {} bytes", header_.tar_length);
  return Advance(size);
}

absl::Status LayerWriter::Append(ByteSpan bytes) {
  while (!bytes.empty()) {
    ASSIGN_OR_RETURN(const MutableByteSpan room, Room());
    const size_t length = std::min(bytes.size(), room.size());
    std::memcpy(room.data(), bytes.data(), length);
    bytes = bytes.subspan(length);
    RETURN_IF_ERROR(Advance(length));
  }
  return absl::OkStatus();
}

absl::Status LayerWriter::Advance(size_t size) {
  offset_ += size;
  piece_->size += size;
  return piece_->size == kPieceSize ? Flush() : absl::OkStatus();
}

absl::Status LayerWriter::Flush() {
  if (piece_ == nullptr || piece_->size == 0) return absl::OkStatus();
  piece_ = nullptr;
  content_pushed_ |= in_content_;
  return pipeline_->Push();
}

void LayerWriter::BeginContent() {
  in_content_ = true;
  content_pushed_ = false;
  content_hash_ = crypt::Sha256();
  if (piece_ != nullptr) piece_->content_from = piece_->size;
}

// The first stage has hashed the pieces that were pushed; the one that is being
// filled is hashed here.
absl::StatusOr<oci::Digest> LayerWriter::EndContent() {
  in_content_ = false;
  if (content_pushed_) RETURN_IF_ERROR(pipeline_->WaitFor(kEncrypt));
  if (piece_ != nullptr) {
    content_hash_.Update(piece_->bytes().subspan(piece_->content_from));
    piece_->content_from = kPieceSize;
  }
  return oci::Digest(content_hash_.Finish());
}

absl::Status LayerWriter::Report() {
  const uint64_t passed = pipeline_->bytes_passed();
  const uint64_t fresh = passed - std::exchange(reported_, passed);
  return fresh != 0 && options_.on_written ? options_.on_written(fresh) : absl::OkStatus();
}

absl::StatusOr<oci::Digest> LayerWriter::StoredTocDigest(ByteSpan toc) {
  if (!cipher_) return oci::Digest::Of(toc);
  Bytes stored(std::min(toc.size(), kPieceSize));
  oci::Hasher hasher;
  for (size_t at = 0; at < toc.size(); at += kPieceSize) {
    const ByteSpan part = toc.subspan(at, std::min(kPieceSize, toc.size() - at));
    const MutableByteSpan out = MutableByteSpan(stored).first(part.size());
    RETURN_IF_ERROR(cipher_->Apply(header_.tar_length + at, part, out));
    hasher.Update(out);
  }
  return hasher.Finish();
}

absl::StatusOr<archive::IndexHeader> LayerWriter::WriteIndex(ByteSpan toc) {
  RETURN_IF_ERROR(Flush());
  RETURN_IF_ERROR(pipeline_->WaitFor(kHash));  // every block and tag is appended
  ASSIGN_OR_RETURN(header_.toc_digest, StoredTocDigest(toc));
  covered_ = false;
  ASSIGN_OR_RETURN(const archive::IndexHeader header,
                   index_.Finish(header_, [this](ByteSpan bytes) { return Append(bytes); }));
  RETURN_IF_ERROR(Flush());
  return header;
}

absl::StatusOr<WrittenLayer> LayerWriter::Finish(const archive::Toc& toc) {
  const std::string toc_bytes = archive::SerializeToc(toc);
  if (offset_ != header_.tar_length || toc_bytes.size() != header_.toc_length)
    return Internal("a tar of {} and a TOC of {} bytes, planned were {} and {}", offset_,
                    toc_bytes.size(), header_.tar_length, header_.toc_length);
  RETURN_IF_ERROR(Append(AsBytes(toc_bytes)));
  RETURN_IF_ERROR(Append(Bytes(header_.covered_length - offset_)));
  ASSIGN_OR_RETURN(const archive::IndexHeader header, WriteIndex(AsBytes(toc_bytes)));
  RETURN_IF_ERROR(pipeline_->WaitFor(kUpload));
  RETURN_IF_ERROR(Report());

  WrittenLayer layer;
  layer.size = offset_;
  layer.digest = oci::Digest(stored_hash_.Finish());
  layer.diff_id = plain_hash_ ? oci::Digest(plain_hash_->Finish()) : layer.digest;
  layer.index = {.offset = offset_ - archive::kHeaderSize,
                 .length = archive::kHeaderSize,
                 .root = oci::Digest::Of(header.Encode())};
  if (key_) layer.secret = LayerSecret{std::move(*key_), hmac_->Finish()};
  RETURN_IF_ERROR(upload_->Commit(layer.digest, layer.size));
  return layer;
}

}  // namespace kapsule::image
