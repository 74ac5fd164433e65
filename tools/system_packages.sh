#!/usr/bin/env bash
# Install those of the named Debian packages that are missing, where we may; else say what to install, and go on:
# what needs them says so, and does without.
set -euo pipefail

missing=()
for package in "$@"; do
    dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
done
if [ ${#missing[@]} = 0 ]; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing, and not installed: this needs an administrator: apt-get install ${missing[*]}" >&2
    exit 0
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
install=(apt-get install -y -qq --no-install-recommends "${missing[@]}")
if ! { "${install[@]}" || { apt-get update -qq && "${install[@]}"; }; } </dev/null >/dev/null 2>&1; then
    echo "could not be installed: apt-get install ${missing[*]}" >&2
    exit 0
fi
# The package starts a PACS of its own on this machine, which nobody asked for; ours is a process of its own.
if [[ " ${missing[*]} " == *" orthanc "* ]] && [ -d /run/systemd/system ]; then
    systemctl disable --now orthanc >/dev/null 2>&1 || true
fi
