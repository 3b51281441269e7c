#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/params.h>

#include <climits>
#include <new>
#include <optional>

#include "core/crypt/evp.h"
#include "core/crypt/layer_cipher.h"
#include "core/crypt/wide_aes.h"

namespace kapsule::crypt {
namespace {

constexpr std::string_view kMacInfo = "kapsule v1 chunk mac";
constexpr std::string_view kCommitInfo = "kapsule v1 commit";
constexpr size_t kKeyBytes = 32;  // of the layer key and of the MAC key
constexpr size_t kNonceBytes = 16;
constexpr size_t kSaltBytes = 32;
constexpr size_t kIvBytes = 12;

absl::Status CheckLengths(const LayerKey& key, ByteSpan salt) {
  if (key.key.size() != kKeyBytes || key.nonce.size() != kNonceBytes)
    return InvalidArgument("a layer key of {} bytes and a nonce of {}, not {} and {}",
                           key.key.size(), key.nonce.size(), kKeyBytes, kNonceBytes);
  if (salt.size() != kSaltBytes) return InvalidArgument("a salt of {} bytes", salt.size());
  return absl::OkStatus();
}

// kMacInfo ‖ le32 chunk size ‖ le64 covered length ‖ nonce.
auto MacInfoOf(uint32_t chunk_size, uint64_t covered_length, ByteSpan nonce) {
  std::array<std::byte, kMacInfo.size() + 4 + 8 + kNonceBytes> info;
  std::byte* const numbers = info.data() + kMacInfo.size();
  std::memcpy(info.data(), kMacInfo.data(), kMacInfo.size());
  StoreLe(numbers, chunk_size);
  StoreLe(numbers + 4, covered_length);
  std::memcpy(numbers + 12, nonce.data(), kNonceBytes);
  return info;
}

}  // namespace

absl::StatusOr<Commitment> CommitmentTo(const LayerKey& key, ByteSpan salt) {
  RETURN_IF_ERROR(CheckLengths(key, salt));
  Secret both(kKeyBytes + kNonceBytes);
  std::memcpy(both.bytes().data(), key.key.bytes().data(), kKeyBytes);
  std::memcpy(both.bytes().data() + kKeyBytes, key.nonce.bytes().data(), kNonceBytes);
  Commitment commitment;
  ASSIGN_OR_RETURN(const Secret derived,
                   HkdfSha256(both.bytes(), salt, AsBytes(kCommitInfo), commitment.size()));
  std::memcpy(commitment.data(), derived.bytes().data(), commitment.size());
  return commitment;
}

// One of the two.
struct ChunkMac::State {
  CipherContext context;  // holds the MAC key's schedule; each tag sets its IV only
  std::optional<WideGmac> wide;
};

ChunkMac::ChunkMac(std::unique_ptr<State> state) : state_(std::move(state)) {}
ChunkMac::ChunkMac(ChunkMac&&) noexcept = default;
ChunkMac& ChunkMac::operator=(ChunkMac&&) noexcept = default;
ChunkMac::~ChunkMac() = default;

absl::StatusOr<ChunkMac> ChunkMac::Create(const LayerKey& key, ByteSpan salt, uint32_t chunk_size,
                                          uint64_t covered_length) {
  RETURN_IF_ERROR(CheckLengths(key, salt));
  const auto info = MacInfoOf(chunk_size, covered_length, key.nonce.bytes());
  ASSIGN_OR_RETURN(const Secret mac_key, HkdfSha256(key.key.bytes(), salt, info, kKeyBytes));
  auto state = std::make_unique<State>();
  if (HasWideAes()) {
    try {
      state->wide.emplace(mac_key.bytes());
    } catch (const std::bad_alloc&) {
      return ResourceExhausted("no memory for the keys of AES-256-GMAC");
    }
    return ChunkMac(std::move(state));
  }
  state->context.reset(EVP_CIPHER_CTX_new());
  if (state->context == nullptr || EVP_EncryptInit_ex2(state->context.get(), AesGcm(kKeyBytes),
                                                       U8(mac_key.bytes()), nullptr, nullptr) != 1)
    return OpensslError("set up AES-256-GMAC");
  return ChunkMac(std::move(state));
}

absl::StatusOr<ChunkTag> ChunkMac::Tag(uint64_t index, ByteSpan ciphertext) {
  if (ciphertext.empty() || ciphertext.size() > INT_MAX)
    return InvalidArgument("a chunk of {} bytes", ciphertext.size());
  std::array<std::byte, kIvBytes> iv{};
  StoreBe64(iv.data() + 4, index);
  if (state_->wide) return state_->wide->TagOf(iv, ciphertext);
  EVP_CIPHER_CTX* const context = state_->context.get();
  ChunkTag tag;
  int n;
  if (EVP_EncryptInit_ex2(context, nullptr, nullptr, U8(iv), nullptr) != 1 ||
      EVP_EncryptUpdate(context, nullptr, &n, U8(ciphertext),
                        static_cast<int>(ciphertext.size())) != 1 ||
      EVP_EncryptFinal_ex(context, U8(tag), &n) != 1 ||
      EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, static_cast<int>(tag.size()),
                          tag.data()) != 1)
    return OpensslError("AES-256-GMAC");
  return tag;
}

absl::Status ChunkMac::Verify(uint64_t index, ByteSpan ciphertext, const ChunkTag& tag) {
  ASSIGN_OR_RETURN(const ChunkTag computed, Tag(index, ciphertext));
  // The computed tag is a valid one for these bytes: it is not part of the error.
  if (CRYPTO_memcmp(computed.data(), tag.data(), tag.size()) != 0)
    return DataLoss("chunk {} fails authentication", index);
  return absl::OkStatus();
}

}  // namespace kapsule::crypt
