// Wrapping a layer's private options for RSA and EC recipients by JWE
// (RFC 7516, 7518), as ocicrypt writes and reads it.
#pragma once

#include <span>

#include "core/crypt/jwe_message.h"
#include "core/crypt/keys.h"
#include "core/crypt/options.h"

namespace kapsule::crypt {

// RSA-OAEP or ECDH-ES+A256KW, A256GCM; flattened JSON for one recipient,
// general JSON for several.
absl::StatusOr<std::string> WrapJwe(ByteSpan payload, std::span<const Key> recipients);

// What opening may cost, in RSA-2048 private-key operations: 64 of RSA-4096, or
// one of RSA-16384, some 0.3 s. Whoever can push an image can make every key of
// a provider be tried for every recipient.
inline constexpr int kUnwrapBudget = 512;

// The payload of the first of `messages` that one of `keys` opens; `*opened_by`,
// where not null, is then the index of that key. Keys that a recipient's "kid"
// names by their Fingerprint() are tried first. Only keys that fit a recipient's
// algorithm count towards the budget.
//   NotFound         no recipient belongs to any of the keys
//   InvalidArgument  the budget is used up
absl::StatusOr<Secret> OpenJwes(std::span<const JweMessage> messages, std::span<const Key> keys,
                                size_t* opened_by = nullptr);

// Opens one, of the flattened, general or compact form. Bounded: 64 KiB, 32
// recipients; "zip" and "crit" are refused. Errors: those of ParseJwe() and
// OpenJwes().
absl::StatusOr<Secret> UnwrapJwe(std::string_view jwe, std::span<const Key> keys,
                                 size_t* opened_by = nullptr);

// The ocicrypt annotations of a layer encrypted for `recipients`: pubopts and
// keys.jwe.
absl::StatusOr<oci::Annotations> WrapLayer(const PrivateOptions& options,
                                           const PublicOptions& public_options,
                                           std::span<const Key> recipients);

// The private options of a layer from its annotations, with any of `keys`.
// Checks the public options too (no public nonce, known cipher). `opened_by` as
// for OpenJwes().
//   NotFound         no wrapped key for any of `keys`; says which schemes the
//                    layer offers
//   InvalidArgument  malformed annotations, more than 32 recipients in all, or
//                    the budget is used up
absl::StatusOr<PrivateOptions> UnwrapLayer(const oci::Annotations& annotations,
                                           std::span<const Key> keys, size_t* opened_by = nullptr);

// "jwe,pkcs7": the key schemes that a layer's annotations name, for logs and
// errors; "none" where there is none. Bounded and without control characters.
std::string OfferedSchemes(const oci::Annotations& annotations);

}  // namespace kapsule::crypt
