#include "core/crypt/layer_cipher.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "core/crypt/evp.h"
#include "core/crypt/wide_aes.h"

namespace kapsule::crypt {
namespace {

constexpr size_t kKeyBytes = 32;
constexpr size_t kBlockBytes = 16;
// EVP counts in int; a multiple of the block size.
constexpr size_t kMaxStep = size_t{1} << 30;

}  // namespace

absl::StatusOr<LayerKey> LayerKey::Generate() {
  LayerKey fresh{Secret(kKeyBytes), Secret(kBlockBytes)};
  RETURN_IF_ERROR(FillRandom(fresh.key.bytes()));
  RETURN_IF_ERROR(FillRandom(fresh.nonce.bytes()));
  return fresh;
}

struct LayerCipher::State {
  CipherContext context;
  std::optional<WideCtr> wide;  // where the processor has it
  // The nonce as a 128-bit number; with the key it is on the context already,
  // alone it is no secret worth a page.
  uint64_t nonce_high, nonce_low;
};

LayerCipher::LayerCipher(std::unique_ptr<State> state) : state_(std::move(state)) {}
LayerCipher::LayerCipher(LayerCipher&&) noexcept = default;
LayerCipher& LayerCipher::operator=(LayerCipher&&) noexcept = default;
LayerCipher::~LayerCipher() = default;

absl::StatusOr<LayerCipher> LayerCipher::Create(const LayerKey& key) {
  if (key.key.size() != kKeyBytes || key.nonce.size() != kBlockBytes)
    return InvalidArgument("a layer key of {} bytes and a nonce of {}, not {} and {}",
                           key.key.size(), key.nonce.size(), kKeyBytes, kBlockBytes);
  auto state = std::make_unique<State>();
  state->context.reset(EVP_CIPHER_CTX_new());
  if (state->context == nullptr ||
      EVP_EncryptInit_ex2(state->context.get(), Aes256Ctr(), U8(key.key.bytes()),
                          U8(key.nonce.bytes()), nullptr) != 1)
    return OpensslError("set up AES-256-CTR");
  if (HasWideAes()) state->wide.emplace(key.key.bytes());
  state->nonce_high = LoadBe64(key.nonce.bytes().data());
  state->nonce_low = LoadBe64(key.nonce.bytes().data() + 8);
  return LayerCipher(std::move(state));
}

absl::Status LayerCipher::Apply(uint64_t offset, ByteSpan in, MutableByteSpan out) {
  if (in.size() != out.size())
    return InvalidArgument("{} bytes of input and {} of output", in.size(), out.size());
  EVP_CIPHER_CTX* const context = state_->context.get();
  const uint64_t low = state_->nonce_low + offset / kBlockBytes;
  const uint64_t high = state_->nonce_high + (low < state_->nonce_low);
  // Unless the lower half of the counter overflows on the way.
  if (state_->wide && offset % kBlockBytes == 0 &&
      in.size() / kBlockBytes < std::numeric_limits<uint64_t>::max() - low) {
    state_->wide->Apply(high, low, in, out);
    return absl::OkStatus();
  }
  std::array<std::byte, kBlockBytes> counter;
  StoreBe64(counter.data(), high);
  StoreBe64(counter.data() + 8, low);
  if (EVP_EncryptInit_ex2(context, nullptr, nullptr, U8(counter), nullptr) != 1)
    return OpensslError("set the counter of AES-256-CTR");
  int n;
  if (const size_t skip = offset % kBlockBytes; skip != 0) {
    // Key stream of the bytes before `offset` in its block, thrown away.
    std::array<std::byte, kBlockBytes> before{};
    const int ok = EVP_EncryptUpdate(context, U8(before), &n, U8(before), static_cast<int>(skip));
    Cleanse(before.data(), before.size());
    if (ok != 1) return OpensslError("AES-256-CTR");
  }
  while (!in.empty()) {
    const size_t step = std::min(in.size(), kMaxStep);
    if (EVP_EncryptUpdate(context, U8(out), &n, U8(in), static_cast<int>(step)) != 1)
      return OpensslError("AES-256-CTR");
    in = in.subspan(step);
    out = out.subspan(step);
  }
  return absl::OkStatus();
}

}  // namespace kapsule::crypt
