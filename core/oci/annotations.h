// The annotations of a Kapsule layer's descriptor (docs/format.md).
#pragma once

#include <map>
#include <string>

#include "core/oci/digest.h"

namespace kapsule::oci {

using Annotations = std::map<std::string, std::string>;

inline constexpr char kIndexAnnotation[] = "io.kapsule.index";
inline constexpr char kKindAnnotation[] = "io.kapsule.layer.mediatype";
inline constexpr char kTitleAnnotation[] = "org.opencontainers.image.title";
inline constexpr char kFilepathAnnotation[] = "org.cncf.model.filepath";
// Carried to the snapshotter as a label (key and value together <= 4,096 bytes).
inline constexpr char kLayerLabel[] = "containerd.io/snapshot/kapsule.layer";
inline constexpr size_t kMaxLabelBytes = 4096;
// ocicrypt: public options and wrapped keys.
inline constexpr char kEncPrefix[] = "org.opencontainers.image.enc.";
inline constexpr char kPublicOptionsAnnotation[] = "org.opencontainers.image.enc.pubopts";
inline constexpr char kJweAnnotation[] = "org.opencontainers.image.enc.keys.jwe";

// Where a layer's index header lies and what it hashes to. Written as JSON
// {"version":1,"offset":N,"length":N,"root":"sha256:…"}, the same text in the
// annotation and as member "kapsule" of ocicrypt's private options.
struct IndexRef {
  uint32_t version = 1;
  uint64_t offset = 0;  // of the header in the blob
  uint64_t length = 0;  // of the header
  Digest root;          // SHA-256 of the header

  std::string ToJson() const;
  // InvalidArgument: not that JSON; Unimplemented: a version other than 1.
  static absl::StatusOr<IndexRef> FromJson(std::string_view json);
  bool operator==(const IndexRef&) const = default;
};

// The value of kLayerLabel: {"version":1,"digest":…,"size":N,"diffID":…,"kind":…}.
// A hint for the snapshotter, never authority.
struct LayerLabel {
  Digest digest;  // of the blob as stored
  uint64_t size = 0;
  Digest diff_id;
  std::string kind;  // the last word of the Kapsule media type: model, config, …

  // InvalidArgument where key and value exceed kMaxLabelBytes together.
  absl::StatusOr<std::string> ToJson() const;
  static absl::StatusOr<LayerLabel> FromJson(std::string_view json);
};

}  // namespace kapsule::oci
