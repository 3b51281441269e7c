// For tests: running programs and a registry in a folder of one's own.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/base/json.h"

namespace kapsule::ctl {

// A folder below /tmp that goes with the object.
class TempFolder {
 public:
  TempFolder();
  TempFolder(const TempFolder&) = delete;
  ~TempFolder();
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

// A program that was started; killed and waited for at the end.
class Process {
 public:
  // stdin is `input`; stdout and stderr are kept in files of `folder`.
  Process(const std::filesystem::path& folder, const std::vector<std::string>& command,
          const std::string& input = "", const std::vector<std::string>& environment = {});
  Process(const Process&) = delete;
  ~Process();

  bool running();
  void Signal(int number);
  int Wait();  // the exit code; -N where signal N ended it
  std::string out() const;
  std::string err() const;

 private:
  const std::filesystem::path out_, err_;
  pid_t pid_ = -1;
  int code_ = 0;
};

struct Ran {
  int code;
  std::string out, err;
};
Ran RunProgram(const TempFolder& folder, const std::vector<std::string>& command,
               const std::string& input = "", const std::vector<std::string>& environment = {});

// docker-registry on a port of the loopback.
class Registry {
 public:
  // With `htpasswd`, it asks for a user of that file.
  explicit Registry(const TempFolder& folder, const std::string& htpasswd = "");
  const std::string& host() const { return host_; }

 private:
  std::string host_;
  std::unique_ptr<Process> process_;
};

void WriteText(const std::filesystem::path& path, const std::string& text);
std::string ReadText(const std::filesystem::path& path);

// The blobs of an OCI layout.
std::vector<std::string> BlobsOf(const std::filesystem::path& layout);
Json BlobJson(const std::filesystem::path& layout, const std::string& digest);
// The manifest of a layout with one image.
Json ManifestOf(const std::filesystem::path& layout);

}  // namespace kapsule::ctl
