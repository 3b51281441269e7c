// A blob and registries that have it, for tests of BlobRanges.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/http/test_server.h"
#include "core/registry/blob_ranges.h"

namespace kapsule::registry {

inline std::string TestBytes(size_t size) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 131 + i / 251);
  return text;
}

// Answers as a registry that does ranges.
inline http::TestServer::Answer AnswerRange(const http::TestServer::Request& request,
                                            const std::string& content) {
  const auto range = request.headers.find("range");
  unsigned long long first = 0, last = 0;
  if (range == request.headers.end() ||
      sscanf(range->second.c_str(), "bytes=%llu-%llu", &first, &last) != 2)
    return http::TestServer::Reply(200, content);
  return http::TestServer::Reply(
      206, content.substr(first, last - first + 1),
      fmt::format("Content-Range: bytes {}-{}/{}\r\n", first, last, content.size()));
}

// The hosts of a configuration that names `servers`; the last one is the registry.
inline std::vector<Host> HostsOf(const std::vector<const http::TestServer*>& servers) {
  std::vector<Host> hosts;
  for (const http::TestServer* server : servers) {
    Host host;
    host.name = "127.0.0.1:" + std::to_string(server->port());
    host.url = "http://" + host.name + "/v2";
    hosts.push_back(host);
  }
  return hosts;
}

inline NextCredentials NoCredentials(const std::string&) { return TheseCredentials({}); }

// Of a transfer: longer than any read here, so that a slow machine is no stall, and for
// tests of stalls.
inline constexpr std::chrono::milliseconds kNoStall{60'000}, kShortStall{1500};

// BlobRanges of `content` at `hosts`, which are soon asked again.
inline std::unique_ptr<BlobRanges> OpenRanges(
    const std::string& content, const std::vector<Host>& hosts,
    const HostCredentialSource& credentials = NoCredentials, RangeOptions options = {},
    std::chrono::milliseconds stall = kNoStall) {
  http::Options connections;
  connections.stall_timeout = stall;
  connections.stall_bytes = 1000;
  options.first_delay = std::chrono::milliseconds(10);
  RangeBlob blob{hosts.back().name, "acme/tiny", oci::Digest::Of(AsBytes(content)), content.size()};
  return BlobRanges::Open(std::move(blob), ConnectHosts(hosts, connections).value(), credentials,
                          options)
      .value();
}

struct ReadResult {
  absl::Status status;
  std::string bytes;
};

inline ReadResult ReadRange(BlobRanges& ranges, uint64_t offset, uint64_t size,
                            std::chrono::milliseconds time = std::chrono::seconds(20),
                            std::function<bool()> stopped = nullptr) {
  ReadResult result;
  result.status = ranges.Read(offset, size,
                              [&](ByteSpan bytes) {
                                result.bytes += AsText(bytes);
                                return absl::OkStatus();
                              },
                              {std::chrono::steady_clock::now() + time, std::move(stopped)});
  return result;
}

}  // namespace kapsule::registry
