// The holder's table and its answers. All memory is taken when the table is
// made: a node that runs out of memory loses no descriptor. Not thread-safe.
#pragma once

#include <array>
#include <memory>
#include <span>

#include "core/control/holder_frames.h"

namespace kapsule::control {

// Keeps a second copy of what the store has.
class HeldMirror {
 public:
  virtual ~HeldMirror() = default;
  // False where it could not be copied; its removal is not told then.
  virtual bool Added(std::string_view name, std::span<const UniqueFd> fds) = 0;
  virtual void Removed(std::string_view name, size_t fds) = 0;
};

// Who asks. The user that kapsule-fuse runs as may read everything, but change
// only what is its own: what root trusts ("process", "control", "fuse") comes
// from root.
enum class Requester { kRoot, kOwnUser };

class HolderStore {
 public:
  // Holds at most `max_fds` descriptors in all. `mirror` outlives the store.
  explicit HolderStore(size_t max_fds, HeldMirror* mirror = nullptr);

  // Takes the descriptors, in place of what had the name before. On an error
  // nothing is changed.
  //   InvalidArgument    not a name, no or too many descriptors, or an invalid one
  //   ResourceExhausted  no room for the name or for the descriptors
  absl::StatusCode Put(std::string_view name, std::span<UniqueFd> fds);
  // What is held under `name`; empty where that is nothing.
  std::span<const UniqueFd> Get(std::string_view name) const;
  void Drop(std::string_view name);
  void Clear();

  size_t names() const { return count_; }
  size_t fds() const { return fds_; }

  struct Answer {
    size_t bytes;                   // that were written to `out`
    std::span<const UniqueFd> fds;  // to send along; valid until the next change
    bool quit;
  };
  // Does what a request asks and writes its answer. `fds` are the request's
  // without the answer's socket; those that are kept are moved from.
  Answer Handle(Requester from, ByteSpan request, std::span<UniqueFd> fds,
                std::span<std::byte, kMaxHolderAnswer> out);

 private:
  struct Entry {
    std::array<char, kMaxHeldName> text;
    uint8_t length;
    uint8_t fd_count;
    bool mirrored;
    std::array<UniqueFd, kMaxHeldFds> fds;
    std::string_view name() const { return {text.data(), length}; }
    std::span<const UniqueFd> held() const { return std::span(fds).first(fd_count); }
  };

  absl::StatusCode Change(Requester from, HolderOperation operation, std::string_view name,
                          std::span<UniqueFd> fds);
  Answer List(std::string_view prefix, std::string_view after,
              std::span<std::byte, kMaxHolderAnswer> out) const;
  // Position in order_ of the first name that is not less than `name`.
  size_t LowerBound(std::string_view name) const;
  Entry* Find(std::string_view name) const;
  void Fill(Entry& entry, std::span<UniqueFd> fds);
  void Empty(Entry& entry);

  const size_t max_fds_;
  HeldMirror* const mirror_;
  const std::unique_ptr<Entry[]> entries_;
  // Indexes of entries_: those in use first, by name; then the free ones.
  const std::unique_ptr<uint16_t[]> order_;
  size_t count_ = 0;
  size_t fds_ = 0;
};

}  // namespace kapsule::control
