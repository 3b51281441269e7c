// Writing the tar of a layer: POSIX pax, with the data of files aligned for
// direct I/O, and keeping its table of contents (docs/format.md, "Layer
// stream"). Equal entries give equal bytes.
#pragma once

#include <memory>

#include "core/archive/sink.h"
#include "core/archive/tar_layout.h"
#include "core/archive/toc.h"
#include "core/base/bytes.h"

namespace kapsule::archive {

// Writes members in the order of the calls; a file before the hard links to it.
// After an error the writer is of no more use. Not thread-safe.
class TarWriter {
 public:
  explicit TarWriter(Sink sink);
  ~TarWriter();

  // A directory, a symbolic link or a hard link.
  absl::Status Add(TocEntry entry);

  // A file: its header, then entry.size bytes in pieces, then the end. Where
  // entry.digest is not zero, the content must have it.
  //   FailedPrecondition  more, fewer or other bytes than announced: the file
  //                       changed after it was looked at
  absl::Status BeginFile(TocEntry entry);
  absl::Status Write(ByteSpan bytes);
  absl::StatusOr<oci::Digest> EndFile();  // the SHA-256 of the content

  // The same for content that reaches the sink's end by another way than through
  // Write(), and is hashed there: how many bytes went there, and their SHA-256.
  absl::Status Pass(uint64_t bytes);
  absl::StatusOr<oci::Digest> EndFile(const oci::Digest& digest);

  // Ends the archive with two zero blocks; returns the checked TOC. Once.
  absl::StatusOr<Toc> Finish();

  // Bytes written; after Finish() the tar's length.
  uint64_t length() const { return written_; }

 private:
  absl::Status Emit(ByteSpan bytes);
  absl::Status Count(uint64_t bytes);
  struct OpenFile;

  const Sink sink_;
  TarLayout layout_;
  uint64_t written_ = 0;
  std::unique_ptr<OpenFile> file_;  // between BeginFile() and EndFile()
  Toc toc_;
};

}  // namespace kapsule::archive
