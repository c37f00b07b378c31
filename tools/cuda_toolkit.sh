#!/bin/sh
# cuda_toolkit: prints the root of a CUDA toolkit with nvcc >= 12.9: the system's where there is one, else
# one fetched as Python wheels into .cache/cuda (1.1 GB, pinned to 13.0: what CUDA 13.0 drivers run).
# usage: tools/cuda_toolkit.sh [--system-only]
set -eu
cd "$(dirname "$0")/.."
version_ok() {
    "$1" --version 2>/dev/null | awk '/release/ {
        sub(/.*release /, ""); split($0, v, /[.,]/); ok = v[1] > 12 || (v[1] == 12 && v[2] >= 9) }
        END { exit !ok }'
}
for root in "${CUDA_HOME:-}" /usr/local/cuda /usr/lib/cuda; do
    if [ -n "$root" ] && [ -x "$root/bin/nvcc" ] && version_ok "$root/bin/nvcc"; then
        echo "$root"
        exit 0
    fi
done
if command -v nvcc >/dev/null 2>&1 && version_ok nvcc; then
    dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")"
    exit 0
fi
[ "${1:-}" = --system-only ] && exit 1
venv=.cache/cuda
root() { ls -d "$PWD/$venv"/lib/python3*/site-packages/nvidia/cu13 2>/dev/null | head -n 1; }
if [ -z "$(root)" ] || ! version_ok "$(root)/bin/nvcc"; then
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'nvidia-cuda-nvcc==13.0.*' \
        'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-runtime==13.0.*' \
        'nvidia-cuda-cccl==13.0.*' 'nvidia-cublas==13.0.*' >&2
fi
root
