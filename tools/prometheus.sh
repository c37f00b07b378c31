#!/bin/sh
# prometheus.sh: the Prometheus and the promtool that the monitoring tests run, out of the
# distribution's own package, into .cache/prometheus, once. The package is unpacked, not installed:
# it would start a service on every machine that runs the tests. Prints the folder.
set -eu
cd "$(dirname "$0")/.."
out=.cache/prometheus
if [ ! -x "$out/prometheus" ]; then
    mkdir -p .cache
    part=$(mktemp -d .cache/prometheus.XXXXXX)
    trap 'rm -rf "$part"' EXIT
    chmod 755 "$part" # apt-get downloads as a user of its own
    fetch() { (cd "$part" && apt-get download prometheus) >"$part/log" 2>&1; }
    # A machine that was never asked for packages has no lists yet.
    if ! fetch && ! { apt-get update -qq >"$part/log" 2>&1 && fetch; }; then
        tail -n 20 "$part/log" >&2
        echo "prometheus: apt-get could not download the package prometheus" >&2
        exit 69
    fi
    dpkg -x "$part"/prometheus_*.deb "$part/all"
    mkdir "$part/new"
    mv "$part/all/usr/bin/prometheus" "$part/all/usr/bin/promtool" "$part/new/"
    mv -T "$part/new" "$out" 2>/dev/null || [ -x "$out/prometheus" ]
fi
echo "$PWD/$out"
