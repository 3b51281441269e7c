#include "plugin/keyprovider/provider.h"

#include "core/base/log.h"
#include "core/crypt/keywrap_jwe.h"

namespace kapsule::keyprovider {
namespace {

void Audit(const PeerCredentials& peer, const std::string& fingerprint, const std::string& schemes,
           const absl::Status& result) {
  const std::string line =
      fmt::format("unwrap uid={} pid={} key={} offered={} result={}", peer.uid, peer.pid,
                  fingerprint, schemes, absl::StatusCodeToString(result.code()));
  result.ok() ? log::info("{}", line) : log::warn("{}", line);
}

}  // namespace

absl::Status Provider::Refuse(const PeerCredentials& peer) const {
  const absl::Status refusal = PermissionDenied(
      "uid {} may not ask this key provider; its --allow-uid lists who may", peer.uid);
  Audit(peer, "none", "unread", refusal);
  return refusal;
}

absl::StatusOr<UnwrappedLayer> Provider::Unwrap(const oci::Annotations& annotations,
                                                const PeerCredentials& peer) const {
  if (!Allows(peer)) return Refuse(peer);
  const KeyStore::Keys keys = store_.keys();
  size_t opened_by = 0;
  absl::StatusOr<crypt::PrivateOptions> options =
      crypt::UnwrapLayer(annotations, *keys, &opened_by);
  Audit(peer, options.ok() ? crypt::Fingerprint((*keys)[opened_by]) : "none",
        crypt::OfferedSchemes(annotations), options.status());
  if (!options.ok()) return options.status();
  return UnwrappedLayer{std::move(options->key), std::move(options->index)};
}

absl::StatusOr<Secret> Provider::UnwrapPacket(std::string_view jwe,
                                              const PeerCredentials& peer) const {
  if (!Allows(peer)) return Refuse(peer);
  const KeyStore::Keys keys = store_.keys();
  size_t opened_by = 0;
  absl::StatusOr<Secret> options = crypt::UnwrapJwe(jwe, *keys, &opened_by);
  if (options.ok()) {
    const absl::Status parsed = crypt::PrivateOptions::Parse(options->text()).status();
    if (!parsed.ok()) options = parsed;
  }
  Audit(peer, options.ok() ? crypt::Fingerprint((*keys)[opened_by]) : "none", "provider",
        options.status());
  return options;
}

}  // namespace kapsule::keyprovider
