#include "core/image/layer_writer.h"

#include <algorithm>
#include <system_error>

namespace kapsule::image {
namespace {

constexpr uint32_t kBlockSize = kPieceSize;  // so that a piece is a block

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
  }
  try {
    plain_worker_.emplace([this](const Piece& piece) { return HashPlain(piece); });
    stored_worker_.emplace([this](const Piece& piece) { return HashStored(piece); });
  } catch (const std::system_error& error) {
    return ResourceExhausted("start a thread: {}", error.what());
  }
  return absl::OkStatus();
}

// Two hashes for each of the two workers; the caller's thread has the hash of
// the file's content, the encryption and the upload.
absl::Status LayerWriter::HashPlain(const Piece& piece) {
  if (plain_hash_) plain_hash_->Update(piece.plain);
  if (!piece.covered) return absl::OkStatus();
  RETURN_IF_ERROR(index_.AppendBlock(oci::Digest::Of(piece.stored)));
  if (!chunk_mac_) return absl::OkStatus();
  for (size_t at = 0; at < piece.stored.size(); at += header_.chunk_size) {
    const size_t length = std::min<size_t>(header_.chunk_size, piece.stored.size() - at);
    ASSIGN_OR_RETURN(const crypt::ChunkTag tag,
                     chunk_mac_->Tag((piece.offset + at) / header_.chunk_size,
                                     piece.stored.subspan(at, length)));
    RETURN_IF_ERROR(index_.AppendTag(tag));
  }
  return absl::OkStatus();
}

absl::Status LayerWriter::HashStored(const Piece& piece) {
  stored_hash_.Update(piece.stored);
  if (hmac_) hmac_->Update(piece.stored);
  return absl::OkStatus();
}

absl::Status LayerWriter::Write(ByteSpan tar) {
  if (offset_ + filled_ + tar.size() > header_.tar_length)
    return Internal("a tar of more than the planned {} bytes", header_.tar_length);
  return Append(tar);
}

absl::Status LayerWriter::Append(ByteSpan bytes) {
  while (!bytes.empty()) {
    if (!buffers_)
      buffers_ = std::make_unique_for_overwrite<std::byte[]>(kPieceSize * (cipher_ ? 2 : 1));
    const size_t length = std::min(bytes.size(), kPieceSize - filled_);
    std::memcpy(buffers_.get() + filled_, bytes.data(), length);
    filled_ += length;
    bytes = bytes.subspan(length);
    if (filled_ == kPieceSize) RETURN_IF_ERROR(Flush());
  }
  return absl::OkStatus();
}

absl::Status LayerWriter::Flush() {
  if (filled_ == 0) return absl::OkStatus();
  const ByteSpan given(buffers_.get(), filled_);
  ByteSpan made = given;
  if (cipher_) {
    const MutableByteSpan out(buffers_.get() + kPieceSize, filled_);
    RETURN_IF_ERROR(cipher_->Apply(offset_, given, out));
    made = out;
  }
  // Of the index the ciphertext is chosen: the plaintext is what comes of it.
  const auto piece = std::make_shared<const Piece>(Piece{
      offset_, covered_, covered_ ? given : made, covered_ ? made : given, std::move(buffers_)});
  offset_ += filled_;
  filled_ = 0;
  RETURN_IF_ERROR(plain_worker_->Push(piece));
  RETURN_IF_ERROR(stored_worker_->Push(piece));
  RETURN_IF_ERROR(upload_->Write(piece->stored));
  return options_.on_written ? options_.on_written(piece->stored.size()) : absl::OkStatus();
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

absl::StatusOr<archive::IndexHeader> LayerWriter::WriteIndex() {
  RETURN_IF_ERROR(Flush());
  RETURN_IF_ERROR(plain_worker_->Drain());  // every block and tag is appended
  covered_ = false;
  ASSIGN_OR_RETURN(const archive::IndexHeader header,
                   index_.Finish(header_, [this](ByteSpan bytes) { return Append(bytes); }));
  RETURN_IF_ERROR(Flush());
  return header;
}

absl::StatusOr<WrittenLayer> LayerWriter::Finish(const archive::Toc& toc) {
  const std::string toc_bytes = archive::SerializeToc(toc);
  if (offset_ + filled_ != header_.tar_length || toc_bytes.size() != header_.toc_length)
    return Internal("a tar of {} and a TOC of {} bytes, planned were {} and {}", offset_ + filled_,
                    toc_bytes.size(), header_.tar_length, header_.toc_length);
  ASSIGN_OR_RETURN(header_.toc_digest, StoredTocDigest(AsBytes(toc_bytes)));
  RETURN_IF_ERROR(Append(AsBytes(toc_bytes)));
  RETURN_IF_ERROR(Append(Bytes(header_.covered_length - offset_ - filled_)));
  ASSIGN_OR_RETURN(const archive::IndexHeader header, WriteIndex());
  RETURN_IF_ERROR(plain_worker_->Drain());
  RETURN_IF_ERROR(stored_worker_->Drain());

  WrittenLayer layer;
  layer.size = offset_;
  layer.digest = stored_hash_.Finish();
  layer.diff_id = plain_hash_ ? plain_hash_->Finish() : layer.digest;
  layer.index = {.offset = offset_ - archive::kHeaderSize,
                 .length = archive::kHeaderSize,
                 .root = oci::Digest::Of(header.Encode())};
  if (key_) layer.secret = LayerSecret{std::move(*key_), hmac_->Finish()};
  RETURN_IF_ERROR(upload_->Commit(layer.digest, layer.size));
  return layer;
}

}  // namespace kapsule::image
