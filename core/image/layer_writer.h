// A layer from its tar bytes to its stored bytes, in one pass (docs/format.md,
// "Layer stream"): encrypt, tag and hash, then TOC, zeros and index.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>

#include "core/archive/index_writer.h"
#include "core/archive/toc.h"
#include "core/crypt/hmac.h"
#include "core/crypt/layer_cipher.h"
#include "core/image/pipeline.h"
#include "core/oci/image_store.h"

namespace kapsule::image {

// What opens an encrypted layer, to be wrapped for its recipients.
struct LayerSecret {
  crypt::LayerKey key;
  std::array<std::byte, 32> hmac{};
};

struct WrittenLayer {
  oci::Digest digest;   // of the stored bytes
  oci::Digest diff_id;  // of the plaintext stream
  uint64_t size = 0;
  oci::IndexRef index;
  std::optional<LayerSecret> secret;  // of an encrypted layer
};

struct LayerOptions {
  uint64_t tar_length = 0;  // archive::PlanTar()
  uint64_t toc_length = 0;
  uint32_t chunk_size = 64 * 1024;
  bool encrypt = false;
  std::filesystem::path temp_folder = "/tmp";  // for the index of large layers
  // Called by whoever calls the writer, with the number of bytes that were
  // written since; its error stops the writer.
  std::function<absl::Status(uint64_t bytes)> on_written = {};
};

// The size of the blob that `options` lead to. InvalidArgument where the format
// has no such layer.
absl::StatusOr<uint64_t> StoredSize(const LayerOptions& options);

// The bytes pass three stages beside each other (see pipeline.h): encrypting, with
// what is hashed of the plaintext; hashing what is stored; the upload. So every
// byte is touched once each stage, and where it is read from goes on meanwhile.
// Not thread-safe; has three threads and at most 16 MiB of buffers. The upload is
// used by a thread of the writer's until Finish() or the destructor. Destroying
// the writer before Finish() drops the upload.
class LayerWriter {
 public:
  // Key, nonce and salt are made here: every writer has its own.
  static absl::StatusOr<std::unique_ptr<LayerWriter>> Start(
      LayerOptions options, std::unique_ptr<oci::BlobUpload> upload);
  ~LayerWriter();

  // The next bytes of the tar. Errors here and below may be of earlier bytes.
  absl::Status Write(ByteSpan tar);

  // The same without a copy: room for at least one byte, then how many bytes were
  // put there. Room begins on a multiple of 4 KiB where the tar is at one.
  absl::StatusOr<MutableByteSpan> Room();
  absl::Status Filled(size_t size);

  // Gives the SHA-256 of the bytes that came between the two calls.
  void BeginContent();
  absl::StatusOr<oci::Digest> EndContent();

  // After the whole tar: writes the rest of the stream and commits the upload.
  // Once. Internal where tar or TOC have another length than was announced.
  absl::StatusOr<WrittenLayer> Finish(const archive::Toc& toc);

 private:
  LayerWriter(LayerOptions options, archive::IndexHeader header,
              std::unique_ptr<oci::BlobUpload> upload);

  absl::Status Prepare();
  // The stages but the last.
  absl::Status Encrypt(Piece& piece);
  absl::Status HashStored(const Piece& piece);

  void HashPlain(ByteSpan plain, bool content);
  absl::Status EncryptCovered(uint64_t offset, MutableByteSpan bytes, Piece& piece);
  absl::Status HashIndex(uint64_t offset, ByteSpan stored);
  absl::Status Append(ByteSpan bytes);
  absl::Status Advance(size_t size);
  absl::Status Flush();
  absl::Status Report();
  absl::StatusOr<oci::Digest> StoredTocDigest(ByteSpan toc);
  absl::StatusOr<archive::IndexHeader> WriteIndex(ByteSpan toc);

  const LayerOptions options_;
  archive::IndexHeader header_;
  const std::unique_ptr<oci::BlobUpload> upload_;
  std::optional<crypt::LayerKey> key_;

  // The piece that is being filled; null between pieces. Bytes of the covered
  // range come as plaintext, bytes of the index as they are stored.
  Piece* piece_ = nullptr;
  uint64_t offset_ = 0;  // of the next byte in the blob
  bool covered_ = true;
  bool in_content_ = false, content_pushed_ = false;
  uint64_t reported_ = 0;

  // The first stage's until it was waited for.
  std::optional<crypt::LayerCipher> cipher_;
  std::optional<crypt::ChunkMac> chunk_mac_;
  std::optional<crypt::Sha256> plain_hash_;  // of the whole stream, where it is encrypted
  crypt::Sha256 content_hash_;
  Bytes index_plaintext_;
  // The second stage's.
  archive::IndexWriter index_;
  crypt::Sha256 stored_hash_;
  std::optional<crypt::Hmac> hmac_;

  std::unique_ptr<Pipeline> pipeline_;  // the last member: its threads use the others
};

}  // namespace kapsule::image
