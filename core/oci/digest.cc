#include "core/oci/digest.h"

#include <openssl/evp.h>

#include <cstdlib>
#include <utility>

namespace kapsule::oci {
namespace {

constexpr std::string_view kPrefix = "sha256:";

// OpenSSL's SHA-256 fails only where there is no memory. A digest that is
// silently wrong could equal another one, so the process ends instead.
void Must(int result) {
  if (result != 1) std::abort();
}

EVP_MD_CTX* Context(void* context) { return static_cast<EVP_MD_CTX*>(context); }

}  // namespace

absl::StatusOr<Digest> Digest::Parse(std::string_view text) {
  if (!text.starts_with(kPrefix)) return InvalidArgument("a digest that is not \"sha256:…\"");
  if (text.size() != kPrefix.size() + 64)
    return InvalidArgument("a digest of {} characters, not 71", text.size());
  const absl::StatusOr<std::string> bytes = FromHex(text.substr(kPrefix.size()));
  if (!bytes.ok()) return Annotate(bytes.status(), "digest");
  Raw raw;
  std::memcpy(raw.data(), bytes->data(), raw.size());
  return Digest(raw);
}

Digest Digest::Of(ByteSpan bytes) {
  Hasher hasher;
  hasher.Update(bytes);
  return hasher.Finish();
}

Hasher::Hasher() : context_(EVP_MD_CTX_new()) {
  Must(context_ != nullptr);
  Must(EVP_DigestInit_ex(Context(context_), EVP_sha256(), nullptr));
}

Hasher::Hasher(Hasher&& other) noexcept : context_(std::exchange(other.context_, nullptr)) {}

Hasher& Hasher::operator=(Hasher&& other) noexcept {
  std::swap(context_, other.context_);
  return *this;
}

Hasher::~Hasher() { EVP_MD_CTX_free(Context(context_)); }

void Hasher::Update(ByteSpan bytes) {
  Must(EVP_DigestUpdate(Context(context_), bytes.data(), bytes.size()));
}

Digest Hasher::Finish() {
  Digest::Raw raw;
  Must(
      EVP_DigestFinal_ex(Context(context_), reinterpret_cast<unsigned char*>(raw.data()), nullptr));
  return Digest(raw);
}

std::vector<Digest> ChainIds(const std::vector<Digest>& diff_ids) {
  std::vector<Digest> chain;
  chain.reserve(diff_ids.size());
  for (const Digest& diff_id : diff_ids) {
    chain.push_back(
        chain.empty() ? diff_id : Digest::Of(AsBytes(chain.back().text() + " " + diff_id.text())));
  }
  return chain;
}

}  // namespace kapsule::oci
