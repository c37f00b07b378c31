#!/bin/sh
# build.sh PRESET [TARGET...]: configures and builds quietly; prints the log where it fails.
# Configuring anew each time (0.2 s) finds libraries that were installed since.
set -eu
cd "$(dirname "$0")/.."
preset=$1
shift
mkdir -p build
log=build/$preset.log
{
    cmake --preset "$preset" && cmake --build --preset "$preset" ${1:+--target "$@"}
} >"$log" 2>&1 || {
    cat "$log" >&2
    echo "build: preset $preset failed" >&2
    exit 1
}
