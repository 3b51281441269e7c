// One connection of HttpListener: a request read and a reply written, neither of which
// waits. Not thread-safe.
#pragma once

#include <absl/time/time.h>

#include <optional>
#include <string>

#include "core/base/file.h"
#include "snapshotter/http_listener.h"

namespace kapsule::snapshotter {

class HttpConnection {
 public:
  enum class State { kReading, kAsked, kWriting, kDone };

  // `socket` is not blocking.
  HttpConnection(UniqueFd socket, absl::Time now);

  State state() const { return state_; }
  // For poll(2), except while a reply is made.
  int fd() const { return socket_.get(); }
  short events() const;
  // When it has had its time: to send a request, or to take the reply.
  absl::Time deadline() const { return deadline_; }

  // Reads what has come. Once that is a request, its path: then Reply() is due. What is no
  // request, or is none by its deadline, is refused here.
  std::optional<std::string> Read(absl::Time now);
  void Reply(const HttpReply& reply, absl::Time now);
  // Writes what goes; gives up at the deadline.
  void Write(absl::Time now);

 private:
  UniqueFd socket_;
  State state_ = State::kReading;
  absl::Time deadline_;
  std::string text_;  // that has been read, or is to be written
  size_t sent_ = 0;   // of it
};

}  // namespace kapsule::snapshotter
