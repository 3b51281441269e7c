// SHA-256 digests as OCI writes them: "sha256:<64 lower-case hex>"
// (image-spec descriptor.md). Other algorithms are refused.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "core/base/bytes.h"

namespace kapsule::oci {

class Digest {
 public:
  using Raw = std::array<std::byte, 32>;

  Digest() = default;  // all zero
  explicit Digest(const Raw& raw) : raw_(raw) {}
  // InvalidArgument where it is not exactly "sha256:" and 64 lower-case hex.
  static absl::StatusOr<Digest> Parse(std::string_view text);
  static Digest Of(ByteSpan bytes);

  const Raw& raw() const { return raw_; }
  std::string hex() const { return ToHex(raw_); }
  std::string text() const { return "sha256:" + hex(); }
  auto operator<=>(const Digest&) const = default;

 private:
  Raw raw_{};
};

// SHA-256 over pieces. Not thread-safe.
class Hasher {
 public:
  Hasher();
  Hasher(Hasher&&) noexcept;
  Hasher& operator=(Hasher&&) noexcept;
  ~Hasher();
  void Update(ByteSpan bytes);
  Digest Finish();  // once

 private:
  void* context_;
};

// chainID of a list of diffIDs (image-spec config.md, "Layer ChainID"):
// result[i] covers layers 0 to i.
std::vector<Digest> ChainIds(const std::vector<Digest>& diff_ids);

}  // namespace kapsule::oci
