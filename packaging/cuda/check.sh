#!/usr/bin/env bash
# Prints what a binary needs to start and fails if a CUDA library or a glibc newer than 2.34 (Debian 12, Ubuntu 22.04,
# RHEL 9) is among it.
#
#     packaging/cuda/check.sh BINARY...
set -euo pipefail

failed=0
for binary in "$@"; do
  needed=$(readelf -d "$binary" | sed -n 's/.*(NEEDED).*\[\(.*\)\].*/\1/p' | tr '\n' ' ')
  glibc=$(readelf -V "$binary" | grep -oE 'GLIBC_[0-9.]+' | sed 's/GLIBC_//' | sort -uV | tail -1)
  echo "$(basename "$binary"): $(stat -c %s "$binary" | awk '{ printf "%.1f MB", $1 / 1e6 }'), glibc $glibc, needs $needed"
  if grep -qE '(^| )lib(cu|nv)' <<<"$needed"; then
    echo "error: $binary does not start without CUDA" >&2
    failed=1
  fi
  if [ "$(printf '%s\n2.34\n' "$glibc" | sort -V | tail -1)" != 2.34 ]; then
    echo "error: $binary asks for glibc $glibc" >&2
    failed=1
  fi
done
exit $failed
