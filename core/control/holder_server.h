// The holder's end of its socket.
#pragma once

#include <absl/time/time.h>

#include <array>

#include "core/control/holder_store.h"

namespace kapsule::control {

// Answers requests to a store, one packet of a client at a time. Nothing that a
// client does blocks it or takes memory: a packet is read into fixed buffers,
// and an answer that does not fit into the client's socket is lost. A client
// whose packet cannot be answered is dropped. Not thread-safe.
class HolderServer {
 public:
  static constexpr size_t kMaxClients = 16;
  // Of these, how many may be of the holder's own user: root finds a place.
  static constexpr size_t kMaxOwnClients = 8;

  // `listening` is a SOCK_SEQPACKET socket. Clients of uid 0 and `own` are
  // served; what a request may do depends on the uid that sent it, not on the
  // one that connected. Who connects from now on sees this process as its peer
  // (SO_PEERCRED). `store` outlives the server.
  static absl::StatusOr<std::unique_ptr<HolderServer>> Make(UniqueFd listening, uid_t own,
                                                            HolderStore& store);

  // kStopped: `stop` is readable. kQuit: root asked for it. kAbandoned: no client was
  // connected for so long; who connects now finds its connection ended, unanswered.
  enum class End { kStopped, kQuit, kAbandoned };
  absl::StatusOr<End> Run(int stop, absl::Duration abandon_after = absl::InfiniteDuration());

 private:
  HolderServer(UniqueFd listening, uid_t own, HolderStore& store)
      : listening_(std::move(listening)), own_(own), store_(store) {}
  void Accept();
  bool HasRoomFor(uid_t uid) const;
  bool alone() const;
  // False where the client is to be dropped.
  bool Serve(int client, bool* quit);
  void Answer(int socket, size_t bytes, std::span<const UniqueFd> fds);

  struct Client {
    UniqueFd socket;
    uid_t uid = 0;
  };

  const UniqueFd listening_;
  const uid_t own_;
  HolderStore& store_;
  std::array<Client, kMaxClients> clients_;
  std::array<std::byte, kMaxHolderRequest> request_;
  std::array<std::byte, kMaxHolderAnswer> answer_;
};

}  // namespace kapsule::control
