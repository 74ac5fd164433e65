#!/usr/bin/env bash
# Install those of the named Debian packages that are missing. Without the permission to install, print the command and
# exit with 0: every feature that needs a missing package reports it and is skipped.
set -euo pipefail

missing=()
for package in "$@"; do
    dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
done
if [ ${#missing[@]} = 0 ]; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing packages; an administrator can install them with: apt-get install ${missing[*]}" >&2
    exit 0
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
install=(apt-get install -y -qq --no-install-recommends "${missing[@]}")
if ! { "${install[@]}" || { apt-get update -qq && "${install[@]}"; }; } </dev/null >/dev/null 2>&1; then
    echo "could not be installed: apt-get install ${missing[*]}" >&2
    exit 0
fi
# The package enables a PACS service on this machine, which is not wanted: the demo and the tests start their own process.
if [[ " ${missing[*]} " == *" orthanc "* ]] && [ -d /run/systemd/system ]; then
    systemctl disable --now orthanc >/dev/null 2>&1 || true
fi
