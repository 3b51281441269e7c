// Who may ask, what the answer is, and the record of both.
#pragma once

#include <set>

#include "core/base/unix_socket.h"
#include "core/keyprovider/wire.h"
#include "plugin/keyprovider/key_store.h"

namespace kapsule::keyprovider {

// Thread-safe.
class Provider {
 public:
  // `store` outlives this.
  Provider(const KeyStore& store, std::set<uid_t> allowed_uids)
      : store_(store), allowed_uids_(std::move(allowed_uids)) {}

  // Root is a uid like any other: allowed only where it is listed.
  bool Allows(const PeerCredentials& peer) const { return allowed_uids_.count(peer.uid) != 0; }

  // Writes one line to the log, whatever comes out: the peer, the key that
  // opened the layer, the schemes the layer offers, the result. Never a secret
  // or an annotation's value.
  //   PermissionDenied  the peer is not allowed
  // and the errors of crypt::UnwrapLayer.
  absl::StatusOr<UnwrappedLayer> Unwrap(const oci::Annotations& annotations,
                                        const PeerCredentials& peer) const;

  // The same for one wrapped key, a JWE, whose private options come back byte by
  // byte. NotFound and InvalidArgument as crypt::UnwrapJwe; a JWE that holds no
  // private options is InvalidArgument, since this decrypts nothing else.
  absl::StatusOr<Secret> UnwrapPacket(std::string_view jwe, const PeerCredentials& peer) const;

  // The answer to a peer that is not allowed; logged like the others.
  absl::Status Refuse(const PeerCredentials& peer) const;

 private:
  const KeyStore& store_;
  const std::set<uid_t> allowed_uids_;
};

}  // namespace kapsule::keyprovider
