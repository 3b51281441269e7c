#include "kapsule-ctl/doctor_containerd.h"

#include <memory>
#include <optional>
#include <system_error>

#include "kapsule-ctl/running_containerd.h"

namespace kapsule::ctl {
namespace {

namespace fs = std::filesystem;

constexpr ContainerdVersion kTransferPulls{2, 0, 0}, kMapsOwners{2, 0, 0}, kExports{1, 7, 16},
    kProxyDiffers{1, 7, 4};

// The part of the documentation that has it all right.
std::string Example(const ContainerdVersion& version) {
  return version >= kTransferPulls  ? "configs/containerd/2.toml"
         : version >= kProxyDiffers ? "configs/containerd/1.7.toml"
                                    : "configs/containerd/1.6.toml";
}

std::string CriSection(const ContainerdVersion& version) {
  return version >= kTransferPulls ? "[plugins.'io.containerd.cri.v1.images']"
                                   : "[plugins.\"io.containerd.grpc.v1.cri\".containerd]";
}

std::string AndRestart(const ContainerdFacts& facts, const std::string& what) {
  return fmt::format("{} in {} (as {} has it) and restart containerd", what,
                     facts.config.path.string(), Example(facts.version));
}

const ContainerdConfig::Proxy* ProxyOf(const ContainerdFacts& facts, const std::string& name) {
  const auto found = facts.config.proxies.find(name);
  return found == facts.config.proxies.end() ? nullptr : &found->second;
}

std::string Export(const ContainerdFacts& facts, const NodeSettings& settings, const char* key) {
  const ContainerdConfig::Proxy* const proxy = ProxyOf(facts, settings.snapshotter_name);
  if (proxy == nullptr) return "";
  const auto found = proxy->exports.find(key);
  return found == proxy->exports.end() ? "" : found->second;
}

bool UsedByCri(const ContainerdFacts& facts, const NodeSettings& settings) {
  const CriImageSettings cri = facts.config.CriFor(facts.version);
  return !facts.config.cri_disabled &&
         (cri.snapshotter == settings.snapshotter_name || !cri.runtimes.empty());
}

bool HasAnnotations(const ContainerdFacts& facts) {
  return facts.config.CriFor(facts.version).disable_annotations == false;
}

// Found at the first check that asks, for all of them.
class Found {
 public:
  const absl::StatusOr<ContainerdFacts>& For(const NodeSettings& settings) {
    if (!facts_) facts_ = Find(settings);
    return *facts_;
  }

 private:
  static absl::StatusOr<ContainerdFacts> Find(const NodeSettings& settings) {
    fs::path path = settings.containerd_config;
    if (path.empty())
      path = ConfigOfRunning(settings.containerd_address).value_or(kContainerdConfig);
    ContainerdFacts facts;
    ASSIGN_OR_RETURN(facts.config, LoadContainerdConfig(path, settings.snapshotter_name));
    const absl::StatusOr<std::string> text = VersionOfRunning(settings.containerd_address);
    facts.version = (text.ok() ? ContainerdVersion::Parse(*text) : std::nullopt)
                        .value_or(GuessVersion(facts.config));
    return facts;
  }
  std::optional<absl::StatusOr<ContainerdFacts>> facts_;
};

Finding JudgeConfig(const absl::StatusOr<ContainerdFacts>& facts) {
  if (facts.ok())
    return Good(fmt::format("{}, version {}, for containerd {}.{}", facts->config.path.string(),
                            facts->config.version, facts->version.major, facts->version.minor));
  if (absl::IsNotFound(facts.status()))
    return Bad(Message(facts.status()),
               "make it (containerd config default), and merge one of configs/containerd/ into it");
  return Bad(Message(facts.status()), "correct it: containerd does not start with it");
}

// The transfer service asks this differ alone.
Finding JudgeUnpackingDiffer(const ContainerdFacts& facts, const std::string& differ) {
  const ContainerdConfig::Proxy* const proxy = ProxyOf(facts, differ);
  if (proxy == nullptr || proxy->type != "diff") return Good("by the transfer service");
  return Bad(fmt::format("unpack_config has differ = \"{}\": it claims model layers alone, and"
                         " ordinary ones are not unpacked",
                         differ),
             AndRestart(facts, "set differ = \"walking\" there"));
}

using Judge = Finding (*)(const ContainerdFacts&, const NodeSettings&);

}  // namespace

// From version 3 on it is made for 2.x; 1.6 has no transfer service.
ContainerdVersion GuessVersion(const ContainerdConfig& config) {
  if (config.version >= 3) return kTransferPulls;
  return config.unpacked.empty() ? ContainerdVersion{1, 6, 0} : kExports;
}

Finding JudgeProxyPlugin(const ContainerdFacts& facts, const NodeSettings& settings) {
  const std::string& name = settings.snapshotter_name;
  const std::string wanted = fmt::format(
      "[proxy_plugins.{}] type = \"snapshot\" and address = \"{}\"", name, settings.address);
  const ContainerdConfig::Proxy* const proxy = ProxyOf(facts, name);
  if (proxy == nullptr)
    return Bad(fmt::format("no [proxy_plugins.{}]", name), AndRestart(facts, "add " + wanted));
  if (proxy->type != "snapshot")
    return Bad(fmt::format("[proxy_plugins.{}] has type \"{}\"", name, proxy->type),
               AndRestart(facts, "set " + wanted));
  if (proxy->address != settings.address)
    return Bad(fmt::format("[proxy_plugins.{}] has address \"{}\", where the snapshotter does not"
                           " listen",
                           name, proxy->address),
               AndRestart(facts, "set " + wanted));
  return Good(fmt::format("{} at {}", name, proxy->address));
}

Finding JudgeUserNamespaces(const ContainerdFacts& facts, const NodeSettings& settings) {
  constexpr char kCapability[] = "remap-ids";
  const std::string& name = settings.snapshotter_name;
  const ContainerdConfig::Proxy* const proxy = ProxyOf(facts, name);
  const bool declared = proxy != nullptr && proxy->capabilities.contains(kCapability);
  if (facts.version < kMapsOwners) {
    if (!declared) return Good("containerd before 2.0 changes the owners of files itself");
    return Warn(fmt::format("[proxy_plugins.{}] has the capability \"{}\": containerd before 2.0"
                            " cannot mount what it is given then for pods with user namespaces",
                            name, kCapability),
                AndRestart(facts, "remove it"));
  }
  if (declared) return Good("the kernel maps the owners of files");
  return Warn("containerd copies the ordinary layers of an image for pods with user namespaces",
              AndRestart(facts, fmt::format("set capabilities = [\"{}\"] in [proxy_plugins.{}]",
                                            kCapability, name)));
}

Finding JudgeDiffers(const ContainerdFacts& facts, const NodeSettings& settings) {
  std::string ours;
  for (const auto& [name, proxy] : facts.config.proxies) {
    if (proxy.type != "diff") continue;
    if (facts.version < kProxyDiffers)
      return Bad(fmt::format("[proxy_plugins.{}] has type \"diff\": containerd before 1.7.4 panics"
                             " when it starts",
                             name),
                 "remove it, or update containerd first");
    if (proxy.address == settings.address) ours = name;
  }
  if (facts.version < kProxyDiffers) return Good("none that this containerd cannot start with");
  const std::vector<std::string>& order = facts.config.differs;
  if (!ours.empty() && !order.empty() && order.front() == ours)
    return Good(ours + " is asked first");
  return Warn(
      "Kapsule is not asked first: clients that send no labels, such as ctr images pull --local,"
      " cannot unpack an image whose model lies above other layers",
      AndRestart(facts, fmt::format("add [proxy_plugins.{0}-diff] type = \"diff\" and"
                                    " address = \"{1}\", and default = [\"{0}-diff\","
                                    " \"walking\"] to"
                                    " [plugins.\"io.containerd.service.v1.diff-service\"]",
                                    settings.snapshotter_name, settings.address)));
}

Finding JudgeCriSnapshotter(const ContainerdFacts& facts, const NodeSettings& settings) {
  const std::string& name = settings.snapshotter_name;
  if (facts.config.cri_disabled) return Good("CRI is off; ctr takes --snapshotter " + name);
  const CriImageSettings cri = facts.config.CriFor(facts.version);
  if (cri.snapshotter == name) return Good(name + ", for every pod");
  if (!cri.runtimes.empty())
    return Good(fmt::format("{} for pods of the runtime {}", name, *cri.runtimes.begin()));
  if (facts.version >= kTransferPulls && facts.config.old_cri.snapshotter == name)
    return Bad(
        "set where containerd 2.x does not look: without runtimes beside it, nothing of the"
        " old CRI section is taken over",
        AndRestart(facts,
                   fmt::format("set snapshotter = \"{}\" in {}", name, CriSection(facts.version))));
  return Warn(fmt::format("pods use {}, not {}", cri.snapshotter.value_or("overlayfs"), name),
              AndRestart(facts, fmt::format("set snapshotter = \"{}\" in {}", name,
                                            CriSection(facts.version))));
}

Finding JudgeLabels(const ContainerdFacts& facts, const NodeSettings& settings) {
  if (!UsedByCri(facts, settings)) return Good("CRI does not use this snapshotter");
  if (HasAnnotations(facts)) return Good("CRI tells which image a layer is of");
  constexpr char kSeen[] =
      "CRI does not tell which image a layer is of: layers are first opened when the pull is over";
  if (facts.version < kTransferPulls)
    return Warn(kSeen, AndRestart(facts, "set disable_snapshot_annotations = false in " +
                                             CriSection(facts.version)));
  const std::string told = Export(facts, settings, "enable_remote_snapshot_annotations");
  if (told == "true" && facts.config.CriFor(facts.version).local_pull != true)
    return Good("the transfer service tells which image a layer is of");
  if (told == "true")
    return Warn(kSeen, AndRestart(facts,
                                  "remove use_local_image_pull, or set"
                                  " disable_snapshot_annotations = false beside it"));
  return Warn(kSeen, AndRestart(facts, fmt::format("set enable_remote_snapshot_annotations ="
                                                   " \"true\" in [proxy_plugins.{}.exports]",
                                                   settings.snapshotter_name)));
}

Finding JudgeImageRoot(const ContainerdFacts& facts, const NodeSettings& settings) {
  if (!UsedByCri(facts, settings)) return Good("CRI does not use this snapshotter");
  const std::string root = Export(facts, settings, "root");
  constexpr char kMeans[] = "the kubelet neither evicts on a full disk nor cleans images up";
  if (facts.version >= kExports && root == settings.root) return Good("exported: " + root);
  const fs::path fallback =
      facts.config.root / ("io.containerd.snapshotter.v1." + settings.snapshotter_name);
  std::error_code error;
  if ((facts.version < kExports || root.empty()) && fs::is_directory(fallback, error))
    return Good(fallback.string() + " is there");
  if (facts.version < kExports)
    return Bad(fmt::format("{} is not there: {}", fallback.string(), kMeans),
               fmt::format("ln -s {} {}", settings.root, fallback.string()));
  return Bad(
      fmt::format("{}: {}", root.empty() ? "not exported" : "another one is exported, " + root,
                  kMeans),
      AndRestart(facts, fmt::format("set root = \"{}\" in [proxy_plugins.{}.exports]",
                                    settings.root, settings.snapshotter_name)));
}

Finding JudgeUnpacking(const ContainerdFacts& facts, const NodeSettings& settings) {
  const std::string& name = settings.snapshotter_name;
  if (facts.version < kTransferPulls) return Good("not needed before containerd 2.0");
  const auto entry = facts.config.unpacked.find(name);
  if (entry != facts.config.unpacked.end()) return JudgeUnpackingDiffer(facts, entry->second);
  const std::string fix = AndRestart(
      facts, fmt::format("add an entry with snapshotter = \"{}\" to"
                         " [[plugins.'io.containerd.transfer.v1.local'.unpack_config]], and one for"
                         " overlayfs",
                         name));
  const bool by_transfer = UsedByCri(facts, settings) && !HasAnnotations(facts) &&
                           facts.config.CriFor(facts.version).local_pull != true;
  if (by_transfer)
    return Bad(fmt::format("no unpack_config for {}: no pod starts (\"no unpack platforms"
                           " defined\")",
                           name),
               fix);
  return Warn(fmt::format("no unpack_config for {}: ctr images pull does not unpack to it", name),
              fix);
}

std::vector<Check> ContainerdChecks() {
  const auto found = std::make_shared<Found>();
  const auto check = [found](const char* name, Judge judge) {
    return Check{name, true, [found, judge](const NodeSettings& settings) {
                   const absl::StatusOr<ContainerdFacts>& facts = found->For(settings);
                   if (facts.ok()) return judge(*facts, settings);
                   return Warn("not known without containerd's config", "see above");
                 }};
  };
  return {{"containerd config", true,
           [found](const NodeSettings& settings) { return JudgeConfig(found->For(settings)); }},
          check("proxy plugin", JudgeProxyPlugin),
          check("user namespaces", JudgeUserNamespaces),
          check("differs", JudgeDiffers),
          check("CRI snapshotter", JudgeCriSnapshotter),
          check("labels", JudgeLabels),
          check("image root", JudgeImageRoot),
          check("unpacking", JudgeUnpacking)};
}

}  // namespace kapsule::ctl
