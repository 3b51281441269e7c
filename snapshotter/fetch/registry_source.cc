#include "snapshotter/fetch/registry_source.h"

#include <absl/time/clock.h>

#include <atomic>
#include <utility>

#include "core/base/log.h"
#include "core/base/printable.h"
#include "core/oci/reference.h"
#include "core/registry/hosts.h"

namespace kapsule::fetch {
namespace {

// How long a registry's files (hosts.toml, certificates) are believed.
constexpr absl::Duration kKeepHosts = absl::Seconds(30);
constexpr size_t kMaxKnown = 256;

// One round at the hosts, then the fetcher says when to ask again.
registry::RangeOptions OneRound() {
  registry::RangeOptions options;
  options.first_delay = std::chrono::hours(24);
  return options;
}

registry::ReadLimits LimitsUntil(absl::Time deadline, const std::function<bool()>& stopped) {
  const auto left = std::chrono::nanoseconds(absl::ToInt64Nanoseconds(deadline - absl::Now()));
  return {std::chrono::steady_clock::now() + left, stopped};
}

// The same blob in several repositories: the one that gave bytes last is first.
class RegistrySource final : public RangeSource {
 public:
  explicit RegistrySource(std::vector<std::unique_ptr<registry::BlobRanges>> places)
      : places_(std::move(places)) {}

  absl::Status Read(uint64_t offset, uint64_t length, const Sink& sink,
                    const ReadLimits& limits) override {
    uint64_t taken = 0;
    absl::Status of_sink, status;
    const Sink counting = [&](ByteSpan bytes) {
      of_sink = sink(bytes);
      if (of_sink.ok()) taken += bytes.size();
      return of_sink;
    };
    const size_t first = first_;
    for (size_t i = 0; i < places_.size(); ++i) {
      const size_t place = (first + i) % places_.size();
      status = places_[place]->Read(offset + taken, length - taken, counting,
                                    LimitsUntil(limits.deadline, limits.stopped));
      if (status.ok()) first_ = place;
      if (absl::IsDataLoss(of_sink)) first_ = (place + 1) % places_.size();
      if (status.ok() || !of_sink.ok() || absl::IsCancelled(status) ||
          absl::Now() >= limits.deadline)
        return status;
    }
    return status;
  }

  uint64_t auth_refreshes() const override {
    uint64_t sum = 0;
    for (const auto& place : places_) sum += place->challenges();
    return sum;
  }

 private:
  const std::vector<std::unique_ptr<registry::BlobRanges>> places_;
  std::atomic<size_t> first_ = 0;
};

}  // namespace

absl::StatusOr<std::shared_ptr<RangeSource>> RegistrySources::Open(const Origin& origin) {
  std::vector<std::unique_ptr<registry::BlobRanges>> places;
  absl::Status failed = InvalidArgument("the blob has no source");
  for (const std::string& reference : origin.references) {
    auto place = OpenOne(origin, reference);
    if (place.ok()) {
      places.push_back(*std::move(place));
    } else {
      failed = Annotate(place.status(), "source " + Printable(reference));
      log::warn("{}", Describe(failed));
    }
  }
  if (places.empty()) return failed;
  return std::make_shared<RegistrySource>(std::move(places));
}

absl::StatusOr<std::unique_ptr<registry::BlobRanges>> RegistrySources::OpenOne(
    const Origin& origin, const std::string& reference) {
  ASSIGN_OR_RETURN(const oci::Reference parsed, oci::Reference::Parse(reference));
  ASSIGN_OR_RETURN(const Hosts hosts, HostsOf(parsed.host));
  registry::CredentialChain chain{
      {}, options_.plugins, options_.pull_secrets, options_.docker_configs};
  for (const PlaceCredentials& told : origin.credentials)
    chain.told.push_back(
        {told.place, {told.username, told.password, told.identity_token, told.registry_token}});
  const auto credentials = [chain = std::move(chain),
                            repository = parsed.repository](const std::string& host) {
    return registry::FindCredentials(chain, host, repository);
  };
  return registry::BlobRanges::Open({parsed.host, parsed.repository, origin.digest, origin.size},
                                    hosts, credentials, OneRound());
}

absl::StatusOr<RegistrySources::Hosts> RegistrySources::HostsOf(const std::string& registry) {
  const absl::Time now = absl::Now();
  {
    absl::MutexLock lock(&mu_);
    const auto known = known_.find(registry);
    if (known != known_.end() && now - known->second.read_at < kKeepHosts)
      return known->second.hosts;
  }
  ASSIGN_OR_RETURN(const std::vector<registry::Host> hosts,
                   registry::FindHosts(options_.hosts_dir, registry));
  ASSIGN_OR_RETURN(Hosts connected, registry::ConnectHosts(hosts, registry::RangeConnections()));
  absl::MutexLock lock(&mu_);
  if (known_.size() >= kMaxKnown) known_.clear();
  known_[registry] = {connected, now};
  return connected;
}

}  // namespace kapsule::fetch
