#!/usr/bin/env bash
# Fail if one of the given files is larger than 2 MB.
set -euo pipefail
status=0
for file in "$@"; do
    if [ "$(stat -c %s "$file")" -gt 2000000 ]; then
        echo "$file is larger than 2 MB" >&2
        status=1
    fi
done
exit $status
