#!/bin/bash
# The process that has layer keys contains no network code: kapsule-fuse links
# neither gRPC nor libcurl, directly or through another library.
set -euo pipefail
libraries=$(ldd "$1")
grep -q 'libc\.so' <<<"$libraries"  # ldd has looked into a real program
if grep -Ei 'grpc|curl|libssl|nghttp|cares' <<<"$libraries"; then
  echo "$1 links the network code above" >&2
  exit 1
fi
if nm -DC "$1" | grep -Ei ' U (grpc|curl)_'; then
  echo "$1 calls the network code above" >&2
  exit 1
fi
