#include "snapshotter/filters.h"
#include "snapshotter/snapshot_key.h"

using kapsule::snapshotter::Filters;
using kapsule::snapshotter::Info;
using kapsule::snapshotter::Kind;
using kapsule::snapshotter::SnapshotKey;

// A list filter, also read as a snapshot key.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const Info info{text, "parent", Kind::kView, 1, 1, {{"a.b", text}}};
  const absl::StatusOr<Filters> filters = Filters::Parse({text});
  if (filters.ok()) filters->Match(info);
  const SnapshotKey key = SnapshotKey::Parse(text);
  if (!text.ends_with(key.client)) __builtin_trap();
  return 0;
}
