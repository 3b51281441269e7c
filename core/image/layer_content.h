// What one layer holds, and the lengths that are needed before its first byte.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/archive/tar_writer.h"
#include "core/image/layer_writer.h"
#include "core/model/plan.h"

namespace kapsule::image {

struct FileContent {
  std::string path;
  uint64_t size = 0;
  // Sends the content to the tar, which goes into the layer, and ends the file.
  std::function<absl::StatusOr<oci::Digest>(archive::TarWriter&, LayerWriter&)> send;
  // Hard links, given its SHA-256; the names' lengths do not depend on it.
  std::function<std::vector<std::string>(const oci::Digest&)> links;
  oci::Digest* digest = nullptr;  // becomes its SHA-256, where somebody wants it
};

// Owned by root; directories of mode 0755, files of mode 0444.
struct LayerContent {
  std::vector<std::string> directories = {};  // sorted: parents first
  std::vector<FileContent> files = {};
  int64_t mtime = 0;

  // Sets the lengths of tar and TOC.
  absl::Status Measure(LayerOptions& options) const;
  // Writes the tar into `layer`; returns its TOC. Errors name the source file.
  absl::StatusOr<archive::Toc> WriteTar(LayerWriter& layer) const;
};

// The bottom layer: directories and public files; `files` outlives the content.
LayerContent SkeletonContent(const std::vector<std::string>& directories,
                             const std::vector<model::PlannedFile>& files, int64_t mtime);
// A weight file under all its names; `*digest` becomes its SHA-256.
LayerContent WeightContent(const model::PlannedWeight& weight, int64_t mtime, oci::Digest* digest);
// Small files; `files` outlives the content.
LayerContent SmallContent(const std::vector<model::PlannedFile>& files, int64_t mtime);

}  // namespace kapsule::image
