// The config of a model's image (image-spec config.md).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/image/base_image.h"

namespace kapsule::image {

struct ConfigParts {
  std::vector<oci::Digest> diff_ids = {};     // of the model's layers
  std::vector<std::string> history = {};      // what made each of them
  std::vector<std::string> environment = {};  // "NAME=value"
  std::map<std::string, std::string> labels = {};
  int64_t created = 0;  // seconds since 1970
};

// The config's bytes. With `base`, its layers and history follow the model's,
// and everything else that it says stays; variables and labels of `parts`
// replace those of the same name.
std::string MakeConfig(const ConfigParts& parts, const BaseImage* base);

}  // namespace kapsule::image
