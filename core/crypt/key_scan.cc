// The rounds of a key are only in OpenSSL's low-level interface.
#define OPENSSL_SUPPRESS_DEPRECATED

#include "core/crypt/key_scan.h"

#include <fcntl.h>
#include <openssl/aes.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <sstream>

#include "core/base/file.h"
#include "core/crypt/evp.h"

namespace kapsule::crypt::testing {
namespace {

constexpr size_t kPiece = 4 << 20;
constexpr size_t kOverlap = 256;  // no needle is longer
constexpr size_t kPage = 4096;

struct Mapping {
  uint64_t begin = 0, end = 0;
  std::string name;
};

std::vector<Mapping> MappingsOf(pid_t pid) {
  std::ifstream in(fmt::format("/proc/{}/maps", pid));
  std::vector<Mapping> mappings;
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    Mapping mapping;
    char dash;
    std::string skip;
    words >> std::hex >> mapping.begin >> dash >> mapping.end >> skip >> skip >> skip >> skip;
    words >> mapping.name;
    mappings.push_back(mapping);
  }
  return mappings;
}

// The state letter of /proc/PID/stat.
char StateOf(pid_t pid) {
  std::ifstream in(fmt::format("/proc/{}/stat", pid));
  std::string line;
  std::getline(in, line);
  const size_t name_end = line.rfind(')');
  return name_end == std::string::npos ? 'X' : line[name_end + 2];
}

class Stopped {
 public:
  explicit Stopped(pid_t pid) : pid_(pid) {
    kill(pid_, SIGSTOP);
    for (int i = 0; i < 1000 && StateOf(pid_) != 'T'; ++i) usleep(1000);
  }
  ~Stopped() { kill(pid_, SIGCONT); }

 private:
  const pid_t pid_;
};

}  // namespace

void KeyScan::Add(const std::string& name, ByteSpan bytes) {
  needles_.push_back({name, std::string(AsText(bytes))});
}

void KeyScan::AddHalves(const std::string& name, ByteSpan bytes) {
  Add(name, bytes.first(bytes.size() / 2));
  Add(name, bytes.subspan(bytes.size() / 2));
}

// Of both programs that use it: OpenSSL's order of bytes and ours.
void KeyScan::AddAesKey(const std::string& name, ByteSpan key) {
  AddHalves(name, key);
  AES_KEY schedule;
  if (AES_set_encrypt_key(U8(key), static_cast<int>(key.size() * 8), &schedule) != 0) std::abort();
  for (int round = 0; round <= schedule.rounds; ++round) {
    std::array<std::byte, 16> words, bytes;
    std::memcpy(words.data(), &schedule.rd_key[4 * round], words.size());
    for (size_t i = 0; i < words.size(); i += 4)
      StoreLe(bytes.data() + i, __builtin_bswap32(LoadLe<uint32_t>(words.data() + i)));
    Add(name + " schedule", words);
    if (round >= 2) Add(name + " schedule", bytes);
  }
}

void KeyScan::AddLayer(const LayerKey& key, ByteSpan salt, uint32_t chunk_size,
                       uint64_t covered_length) {
  AddAesKey("layer key", key.key.bytes());
  std::string info = "kapsule v1 chunk mac" + std::string(12, '\0');
  StoreLe(info.data() + info.size() - 12, chunk_size);
  StoreLe(info.data() + info.size() - 8, covered_length);
  info += key.nonce.text();
  const Secret mac_key = HkdfSha256(key.key.bytes(), salt, AsBytes(info), 32).value();
  AddAesKey("MAC key", mac_key.bytes());

  std::array<std::byte, 16> ghash{};
  const CipherContext aes(EVP_CIPHER_CTX_new());
  int n = 0;
  if (EVP_EncryptInit_ex(aes.get(), EVP_aes_256_ecb(), nullptr, U8(mac_key.bytes()), nullptr) !=
          1 ||
      EVP_EncryptUpdate(aes.get(), U8(ghash), &n, U8(ghash), 16) != 1)
    std::abort();
  Add("GHASH key", ghash);
  std::array<std::byte, 16> words;  // as CPUs multiply
  StoreBe64(words.data(), LoadLe<uint64_t>(ghash.data()));
  StoreBe64(words.data() + 8, LoadLe<uint64_t>(ghash.data() + 8));
  Add("GHASH key", words);
  // x times it, reversed: wide_aes.cc.
  uint64_t high = LoadBe64(ghash.data()), low = LoadBe64(ghash.data() + 8);
  const uint64_t top = high >> 63;
  high = (high << 1 | low >> 63) ^ (top != 0 ? 0xc200000000000000 : 0);
  low = (low << 1) ^ top;
  StoreLe(words.data(), low);
  StoreLe(words.data() + 8, high);
  Add("GHASH key", words);
}

KeyScan::Found KeyScan::Run(pid_t pid) const {
  const Stopped stopped(pid);
  const UniqueFd memory = OpenFile(fmt::format("/proc/{}/mem", pid), O_RDONLY).value();
  Found found;
  std::string piece(kPiece + kOverlap, '\0');
  for (const Mapping& mapping : MappingsOf(pid)) {
    for (uint64_t at = mapping.begin; at < mapping.end;) {
      const size_t wanted = std::min<uint64_t>(piece.size(), mapping.end - at);
      const ssize_t n = pread(memory.get(), piece.data(), wanted, static_cast<off_t>(at));
      if (n <= 0) {
        if (mapping.name.find("secretmem") != std::string::npos) found.hidden += kPage;
        at += kPage;
        continue;
      }
      found.readable += std::min<size_t>(static_cast<size_t>(n), kPiece);
      for (const Needle& needle : needles_) {
        if (memmem(piece.data(), static_cast<size_t>(n), needle.bytes.data(),
                   needle.bytes.size()) == nullptr)
          continue;
        found.names.insert(needle.name);
        found.places.insert(fmt::format("{} in {}", needle.name, mapping.name));
      }
      at += std::min<size_t>(static_cast<size_t>(n), kPiece);
    }
  }
  return found;
}

}  // namespace kapsule::crypt::testing
