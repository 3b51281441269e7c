// Looking for keys in the memory of a process, as root's tools can. For tests.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "core/crypt/layer_cipher.h"

namespace kapsule::crypt::testing {

class KeyScan {
 public:
  struct Found {
    std::set<std::string> names;   // of what was found
    std::set<std::string> places;  // "what in which mapping"
    uint64_t readable = 0;         // bytes that were searched
    uint64_t hidden = 0;           // bytes of memfd_secret, which cannot be read
  };

  void Add(const std::string& name, ByteSpan bytes);

  // Both halves of everything that the layer's protection rests on: the key, as
  // it is and as an AES key schedule of portable code begins, the MAC key derived
  // from it, and GHASH's key.
  void AddLayer(const LayerKey& key, ByteSpan salt, uint32_t chunk_size, uint64_t covered_length);

  // Searches every mapping of the process, another than the caller's, which is
  // stopped meanwhile.
  Found Run(pid_t pid) const;

 private:
  struct Needle {
    std::string name;
    std::string bytes;
  };
  void AddHalves(const std::string& name, ByteSpan bytes);
  void AddAesKey(const std::string& name, ByteSpan key);
  std::vector<Needle> needles_;
};

}  // namespace kapsule::crypt::testing
