// A layer from its tar bytes to its stored bytes, in one pass (docs/format.md,
// "Layer stream"): encrypt, tag and hash, then TOC, zeros and index.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>

#include "core/archive/index_writer.h"
#include "core/archive/toc.h"
#include "core/crypt/layer_cipher.h"
#include "core/image/piece_worker.h"
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
  // Called with the number of bytes after each piece that was written; its
  // error stops the writer.
  std::function<absl::Status(uint64_t bytes)> on_written = {};
};

// The size of the blob that `options` lead to. InvalidArgument where the format
// has no such layer.
absl::StatusOr<uint64_t> StoredSize(const LayerOptions& options);

// Not thread-safe; has two threads of its own and some 16 MiB of buffers.
// Destroying it before Finish() drops the upload.
class LayerWriter {
 public:
  // Key, nonce and salt are made here: every writer has its own.
  static absl::StatusOr<std::unique_ptr<LayerWriter>> Start(
      LayerOptions options, std::unique_ptr<oci::BlobUpload> upload);
  ~LayerWriter();

  // The next bytes of the tar.
  absl::Status Write(ByteSpan tar);

  // After the whole tar: writes the rest of the stream and commits the upload.
  // Once. Internal where tar or TOC have another length than was announced.
  absl::StatusOr<WrittenLayer> Finish(const archive::Toc& toc);

 private:
  LayerWriter(LayerOptions options, archive::IndexHeader header,
              std::unique_ptr<oci::BlobUpload> upload);

  absl::Status Prepare();
  absl::Status HashPlain(const Piece& piece);
  absl::Status HashStored(const Piece& piece);
  absl::Status Append(ByteSpan bytes);
  absl::Status Flush();
  absl::StatusOr<oci::Digest> StoredTocDigest(ByteSpan toc);
  absl::StatusOr<archive::IndexHeader> WriteIndex();

  const LayerOptions options_;
  archive::IndexHeader header_;
  const std::unique_ptr<oci::BlobUpload> upload_;
  std::optional<crypt::LayerKey> key_;
  std::optional<crypt::LayerCipher> cipher_;

  // The piece that is being filled. Bytes of the covered range come as
  // plaintext, bytes of the index as they are stored.
  std::unique_ptr<std::byte[]> buffers_;
  size_t filled_ = 0;
  uint64_t offset_ = 0;  // of the piece in the blob
  bool covered_ = true;

  // Used by one worker each until it is drained.
  archive::IndexWriter index_;
  std::optional<crypt::ChunkMac> chunk_mac_;
  std::optional<oci::Hasher> plain_hash_;
  oci::Hasher stored_hash_;
  std::optional<crypt::Hmac> hmac_;
  std::optional<PieceWorker> plain_worker_, stored_worker_;  // the last members: end first
};

}  // namespace kapsule::image
