// Files and plugins with credentials, for tests.
#pragma once

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "core/base/file.h"
#include "core/registry/provider_plugins.h"

namespace kapsule::registry {

class CredentialFilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/kapsule-chain-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }

  std::filesystem::path Write(const std::string& name, const std::string& text,
                              mode_t mode = 0600) {
    const std::filesystem::path path = folder_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
    chmod(path.c_str(), mode);
    return path;
  }

  // "auths" of one user whose password is "geheim".
  static std::string Auths(const std::string& key, const std::string& user) {
    return fmt::format(R"({{"auths":{{"{}":{{"username":"{}","password":"geheim"}}}}}})", key,
                       user);
  }

  // The user's name, or "none", or the error.
  static std::string User(const absl::StatusOr<std::optional<Credentials>>& found) {
    if (!found.ok()) return Message(found.status());
    return *found ? (*found)->username : "none";
  }

  std::filesystem::path folder_;
};

inline constexpr char kVersion[] = "credentialprovider.kubelet.k8s.io/v1";

inline constexpr char kAuth[] = R"({"h.io":{"username":"AWS","password":"geheim"}})";

class ProviderPluginsTest : public CredentialFilesTest {
 protected:
  // A plugin that counts its runs and answers with `auth`.
  void Plugin(const std::string& name, const std::string& cache, const std::string& auth) {
    PluginScript(name, fmt::format("cat > {0}/request\necho run >> {0}/runs\ncat <<'E'\n"
                                   R"({{"kind":"CredentialProviderResponse","apiVersion":"{1}",)"
                                   R"("cacheKeyType":"{2}","auth":{3}}})"
                                   "\nE\n",
                                   folder_.string(), kVersion, cache, auth));
  }
  void PluginScript(const std::string& name, const std::string& script) {
    Write("bin/" + name, "#!/bin/sh\n" + script, 0755);
  }
  // Plugins named by `names`, all for *.io.
  std::unique_ptr<ProviderPlugins> Load(
      const std::vector<std::string>& names,
      std::chrono::milliseconds timeout = std::chrono::milliseconds(20'000)) {
    std::string text =
        "kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v1\n"
        "providers:\n";
    for (const std::string& name : names)
      text += fmt::format(
          "- name: {}\n  apiVersion: {}\n  matchImages: ['*.io']\n"
          "  defaultCacheDuration: 1h\n  args: [one, 'two words']\n"
          "  env: [{{name: KAPSULE_X, value: 'y z'}}]\n",
          name, kVersion);
    return ProviderPlugins::Load({Write("config.yaml", text), folder_ / "bin", timeout}).value();
  }
  long Runs() const {
    const std::string runs = ReadFile(folder_ / "runs", 1 << 20).value_or("");
    return std::count(runs.begin(), runs.end(), '\n');
  }
};

}  // namespace kapsule::registry
