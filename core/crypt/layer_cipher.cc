#include "core/crypt/layer_cipher.h"

#include <algorithm>
#include <limits>
#include <new>
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

  // Upper and lower half of the counter of the block that byte `offset` is in.
  std::pair<uint64_t, uint64_t> CounterAt(uint64_t offset) const {
    const uint64_t low = nonce_low + offset / kBlockBytes;
    return {nonce_high + (low < nonce_low), low};
  }
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
  try {
    if (HasWideAes()) state->wide.emplace(key.key.bytes());
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("no memory for the keys of AES-256-CTR");
  }
  state->nonce_high = LoadBe64(key.nonce.bytes().data());
  state->nonce_low = LoadBe64(key.nonce.bytes().data() + 8);
  return LayerCipher(std::move(state));
}

absl::Status LayerCipher::Apply(uint64_t offset, ByteSpan in, MutableByteSpan out) {
  if (in.size() != out.size())
    return InvalidArgument("{} bytes of input and {} of output", in.size(), out.size());
  if (!state_->wide) return ApplyByOpenssl(offset, in, out);
  const size_t head = std::min<size_t>(AlignUp(offset, kBlockBytes) - offset, in.size());
  if (head != 0) {
    RETURN_IF_ERROR(ApplyByOpenssl(offset, in.first(head), out.first(head)));
    offset += head;
    in = in.subspan(head);
    out = out.subspan(head);
  }
  const auto [high, low] = state_->CounterAt(offset);
  // The lower half must not overflow on the way.
  if (in.size() / kBlockBytes >= std::numeric_limits<uint64_t>::max() - low)
    return ApplyByOpenssl(offset, in, out);
  state_->wide->Apply(high, low, in, out);
  return absl::OkStatus();
}

absl::Status LayerCipher::ApplyByOpenssl(uint64_t offset, ByteSpan in, MutableByteSpan out) {
  EVP_CIPHER_CTX* const context = state_->context.get();
  const auto [high, low] = state_->CounterAt(offset);
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
