#!/usr/bin/env bash
# Install the runtime packages into a virtual environment, after printing their size.
# TORCH_INDEX: URL of a package index with PyTorch's CPU wheels, for machines without a GPU (about 2 GB instead of 7).
set -euo pipefail
python=$1
pip=("$python" -m pip --disable-pip-version-check install -q)

if [ -n "${TORCH_INDEX:-}" ]; then
    echo "Installing about 2 GB: PyTorch for the CPU comes from TORCH_INDEX."
    "${pip[@]}" $(grep -E '^torch==' requirements.txt) --index-url "$TORCH_INDEX"
else
    echo "Installing about 7 GB, of which 3 GB are downloaded; most of it is PyTorch with CUDA."
    if ! command -v nvidia-smi >/dev/null; then
        echo "No GPU was found. For the smaller CPU build: make install TORCH_INDEX=URL, with the URL that PyTorch's"
        echo "installation page shows for 'CPU'."
    fi
fi
# Both MLflow and its client, which is installed now, own the folder mlflow: remove both of an earlier installation.
if "$python" -m pip --disable-pip-version-check freeze | grep -q '^mlflow=='; then
    "$python" -m pip --disable-pip-version-check uninstall -q -y mlflow mlflow-skinny mlflow-tracing
fi
"${pip[@]}" -r requirements.txt -c constraints.txt
