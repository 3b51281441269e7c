#include <cstdint>
#include <cstdlib>

#include "core/model/documents.h"

// What is parsed can be packed, and the packed Modelfile says the same.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kapsule::model;
  const auto modelfile = ParseModelfile({reinterpret_cast<const char*>(data), size});
  if (!modelfile.ok()) return 0;
  std::vector<std::string> adapters;
  if (!modelfile->adapters.empty()) adapters.push_back("./adapter");
  const auto packed = ParseModelfile(PackedModelfile(*modelfile, {"./a", "./b"}, adapters));
  if (!packed.ok() || packed->from.size() != 2 || packed->parameters != modelfile->parameters ||
      packed->system != modelfile->system || packed->template_text != modelfile->template_text ||
      packed->licenses != modelfile->licenses)
    std::abort();
  return 0;
}
