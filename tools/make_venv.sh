#!/usr/bin/env bash
# Make the virtual environment. If Debian's venv package is missing, install it when running as root.
set -euo pipefail
python=$1
venv=$2

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
3.11 | 3.12 | 3.13) ;;
*)
    echo "Python 3.11, 3.12 or 3.13 is needed, found $version at $python." >&2
    echo "Install one (Debian 12: apt-get install python3.11 python3.11-venv) or: make PYTHON=/path/to/python3.12" >&2
    exit 1
    ;;
esac

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "python$version-venv" </dev/null
    else
        echo "Python's venv is missing: apt-get install python$version-venv" >&2
        exit 1
    fi
fi
"$python" -m venv "$venv"
