#include <cstdint>
#include <cstdlib>

#include "core/crypt/keywrap_jwe.h"
#include "core/crypt/options.h"

namespace {

// The key of the corpus, so that inputs near it reach the content cipher.
constexpr char kPrivatePem[] =
    "-----BEGIN PRIVATE KEY-----\n"
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgO4kJfwNWu9tgEDC5\n"
    "rwKBB0SB1bkY6KtDW5qygJj7FHShRANCAARRo2MrIg/htSvwt6i7Td6vZ9XOdREM\n"
    "ixTvYAXR77x4+tKy1OU4S79upXPhdW/aci+NOnBTUAdUgm68w6tu8Qel\n"
    "-----END PRIVATE KEY-----\n";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kapsule;
  static const crypt::Key keys[] = {
      crypt::ParsePrivateKey(Secret::CopyOf(kPrivatePem), {}, "key").value(),
      crypt::GenerateKey("rsa-2048").value()};
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<Secret> payload = crypt::UnwrapJwe(input, keys);
  if (!payload.ok() && !absl::IsNotFound(payload.status()) &&
      !absl::IsInvalidArgument(payload.status()))
    std::abort();
  // The other parser that sees what a key opened.
  (void)crypt::PrivateOptions::Parse(payload.ok() ? payload->text() : input);
  return 0;
}
