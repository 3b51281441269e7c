// containerd as Kapsule asks it: images, content, containers, snapshots and leases
// over its unix socket.
#pragma once

#include <absl/time/time.h>
#include <grpcpp/support/status.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/oci/manifest.h"

namespace kapsule::containerd {

// Hands the bytes of a blob to a sink, whose error ends it and is returned.
using BlobReader = std::function<absl::Status(const std::function<absl::Status(ByteSpan)>& sink)>;

using Labels = std::map<std::string, std::string>;

struct Image {
  std::string name;
  oci::Descriptor target;  // a manifest or an index
};

struct ContentInfo {
  oci::Digest digest;
  uint64_t size = 0;
  Labels labels;
};

struct Container {
  std::string id;
  std::string image;  // name of the image record; empty for containers without
  std::string snapshotter;
  std::string snapshot_key;
};

// Thread-safe. Connects at the first call, and again after containerd has been
// away; a call never waits for a containerd that is not there. Every call is
// made in namespace `ns` and ends by `deadline`. Errors carry containerd's
// address and its own message; those of every call:
//   Unavailable       nobody answers there
//   DeadlineExceeded  not answered in time
class Client {
 public:
  explicit Client(std::filesystem::path address);
  ~Client();

  absl::StatusOr<std::vector<std::string>> ListNamespaces(absl::Time deadline);

  // Images whose target is not named by a SHA-256 are left out.
  absl::StatusOr<std::vector<Image>> ListImages(const std::string& ns, absl::Time deadline);
  // NotFound: no image of that name.
  absl::StatusOr<Image> GetImage(const std::string& ns, const std::string& name,
                                 absl::Time deadline);

  // A whole blob, checked against its digest.
  //   NotFound         not in the content store, or not of this namespace
  //   InvalidArgument  longer than `limit` bytes
  //   DataLoss         not the bytes of that digest
  absl::StatusOr<std::string> ReadBlob(const std::string& ns, const oci::Digest& digest,
                                       size_t limit, absl::Time deadline);

  // The first `limit` blobs that match a filter in containerd's language.
  absl::StatusOr<std::vector<ContentInfo>> ListContent(const std::string& ns,
                                                       const std::string& filter, size_t limit,
                                                       absl::Time deadline);

  // Sets one label of a blob and leaves its others. NotFound: no such blob.
  absl::Status SetContentLabel(const std::string& ns, const oci::Digest& digest,
                               const std::string& key, const std::string& value,
                               absl::Time deadline);

  // Writes a blob, unless it is there; `reader` is not called then, nor where an
  // earlier write got to the end. The blob belongs to `lease` in either case.
  // Errors of `reader`, and:
  //   Unavailable         another write of the blob is under way
  //   FailedPrecondition  other bytes than `blob` says
  absl::Status WriteBlob(const std::string& ns, const oci::Descriptor& blob,
                         const BlobReader& reader, const std::string& lease, absl::Time deadline);

  // Has the image of that name point to `image.target`.
  absl::Status PutImage(const std::string& ns, const Image& image, absl::Time deadline);

  // NotFound: no such container (yet).
  absl::StatusOr<Container> GetContainer(const std::string& ns, const std::string& id,
                                         absl::Time deadline);

  // Snapshots.Prepare; `lease` may be empty.
  //   AlreadyExists  `key` exists, or the snapshot that the label
  //                  containerd.io/snapshot.ref names
  absl::Status PrepareSnapshot(const std::string& ns, const std::string& snapshotter,
                               const std::string& key, const std::string& parent,
                               const Labels& labels, const std::string& lease, absl::Time deadline);
  // Prepares a snapshot and has containerd unpack `layer`, whose blob it has, into
  // it; the digest of the tar that this was. After an error as after success
  // `key` may be there: commit or remove it. Errors as PrepareSnapshot() and those of
  // unpacking.
  absl::StatusOr<oci::Digest> Unpack(const std::string& ns, const std::string& snapshotter,
                                     const std::string& key, const std::string& parent,
                                     const Labels& labels, const oci::Descriptor& layer,
                                     const std::string& lease, absl::Time deadline);
  // AlreadyExists: a snapshot `name`.
  absl::Status CommitSnapshot(const std::string& ns, const std::string& snapshotter,
                              const std::string& name, const std::string& key, const Labels& labels,
                              const std::string& lease, absl::Time deadline);
  // NotFound: no such snapshot.
  absl::StatusOr<Labels> GetSnapshotLabels(const std::string& ns, const std::string& snapshotter,
                                           const std::string& key, absl::Time deadline);
  absl::Status RemoveSnapshot(const std::string& ns, const std::string& snapshotter,
                              const std::string& key, absl::Time deadline);

  // A lease keeps what is made under it from garbage collection until it is
  // deleted, at most for `lifetime`. AlreadyExists: a lease of that id.
  absl::Status CreateLease(const std::string& ns, const std::string& id, absl::Duration lifetime,
                           absl::Time deadline);
  absl::Status DeleteLease(const std::string& ns, const std::string& id, absl::Time deadline);

 private:
  struct Stubs;
  absl::Status Failure(const grpc::Status& status, const std::string& what) const;

  // Constant after construction.
  const std::string address_;
  const std::unique_ptr<Stubs> stubs_;
};

}  // namespace kapsule::containerd
