// Where an image is: in a repository of a registry, or in a folder.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "core/oci/image_store.h"
#include "core/oci/reference.h"

namespace kapsule::ctl {

// "registry.example.com/acme/tiny:enc", or "oci:DIR[:TAG]" as skopeo writes it.
struct ImageLocation {
  std::filesystem::path layout;  // empty: a registry
  std::string tag;               // in the layout; may be empty
  oci::Reference reference;      // in a registry

  static absl::StatusOr<ImageLocation> Parse(const std::string& text);
};

// How to talk to one registry.
struct RegistryFlags {
  bool insecure = false;
  std::string username, password;
  bool password_stdin = false;
  std::string ca_file;

  void AddTo(CLI::App& verb);
  // Reads the password from stdin where that was asked for.
  absl::Status ReadPassword();
};

// The flags are for the registry `host`; any other is reached as Docker's
// configuration files say, so that it gets no credentials of ours.
absl::StatusOr<std::unique_ptr<oci::ImageSource>> OpenSource(const ImageLocation& location,
                                                             const RegistryFlags& flags,
                                                             const std::string& host);
// A registry's repository, or a layout that gets the whole image or nothing.
absl::StatusOr<std::unique_ptr<oci::ImageTarget>> OpenTarget(const ImageLocation& location,
                                                             const RegistryFlags& flags);

// CLI11 validators: an error's text, or nothing.
std::string CheckImageName(const std::string& text);      // a registry's name
std::string CheckImageLocation(const std::string& text);  // that, or oci:DIR[:TAG]

}  // namespace kapsule::ctl
