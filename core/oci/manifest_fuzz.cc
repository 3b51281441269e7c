// What a registry or an image layout gives us: whatever is accepted must
// survive being written and read again.
#include <cstdint>

#include "core/oci/manifest.h"
#include "core/oci/reference.h"

namespace kapsule::oci {
namespace {

void Require(bool condition) {
  if (!condition) __builtin_trap();
}

void CheckManifest(std::string_view bytes) {
  const absl::StatusOr<Manifest> manifest = ParseManifest(bytes);
  if (!manifest.ok()) return;
  const std::string written = SerializeManifest(*manifest);
  const absl::StatusOr<Manifest> again = ParseManifest(written);
  if (!again.ok()) {
    // Escapes may grow the text over the limit, nothing else may fail.
    Require(written.size() > kMaxManifestBytes);
    return;
  }
  Require(SerializeManifest(*again) == written);
}

void CheckReference(std::string_view bytes) {
  const absl::StatusOr<Reference> reference = Reference::Parse(bytes);
  if (!reference.ok()) return;
  const absl::StatusOr<Reference> again = Reference::Parse(reference->text());
  Require(again.ok() && again->text() == reference->text());
}

}  // namespace
}  // namespace kapsule::oci

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kapsule::oci;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  CheckManifest(bytes);
  CheckReference(bytes);
  (void)ParseIndex(bytes);
  (void)ParseDiffIds(bytes);
  if (const auto ref = IndexRef::FromJson(bytes); ref.ok())
    Require(IndexRef::FromJson(ref->ToJson()).value() == *ref);
  (void)LayerLabel::FromJson(bytes);
  return 0;
}
