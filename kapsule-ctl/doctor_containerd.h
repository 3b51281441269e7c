// Judging containerd's configuration; apart from finding and reading it, for tests.
#pragma once

#include "kapsule-ctl/containerd_config.h"
#include "kapsule-ctl/doctor.h"

namespace kapsule::ctl {

struct ContainerdFacts {
  ContainerdConfig config;
  ContainerdVersion version;  // that runs; a guess where none runs
};

// Of containerd's config, where none runs to be asked.
ContainerdVersion GuessVersion(const ContainerdConfig& config);

Finding JudgeProxyPlugin(const ContainerdFacts& facts, const NodeSettings& settings);
Finding JudgeUserNamespaces(const ContainerdFacts& facts, const NodeSettings& settings);
Finding JudgeDiffers(const ContainerdFacts& facts, const NodeSettings& settings);
Finding JudgeCriSnapshotter(const ContainerdFacts& facts, const NodeSettings& settings);
Finding JudgeLabels(const ContainerdFacts& facts, const NodeSettings& settings);
Finding JudgeImageRoot(const ContainerdFacts& facts, const NodeSettings& settings);
Finding JudgeUnpacking(const ContainerdFacts& facts, const NodeSettings& settings);

}  // namespace kapsule::ctl
