// Image names: [host[:port]/]path[:tag][@digest], as Docker and containerd
// read them (distribution/reference).
#pragma once

#include <optional>
#include <string>

#include "core/oci/digest.h"

namespace kapsule::oci {

struct Reference {
  std::string host;        // "docker.io" where the name has none
  std::string repository;  // "library/x" on docker.io where it has one part
  std::string tag;         // "latest" where there is neither tag nor digest
  std::optional<Digest> digest;

  // InvalidArgument says what is wrong with the name.
  static absl::StatusOr<Reference> Parse(std::string_view name);
  std::string text() const;
  // What follows …/manifests/ : the digest if there is one, else the tag.
  std::string version() const { return digest ? digest->text() : tag; }
};

}  // namespace kapsule::oci
