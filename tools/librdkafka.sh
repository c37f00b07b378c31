#!/bin/sh
# librdkafka.sh: a newer Kafka client library than the distribution's, for the tests: the one that
# the confluent-kafka wheel carries, into .cache/librdkafka/VERSION, once. Prints the folder, to be
# set as LD_LIBRARY_PATH.
set -eu
cd "$(dirname "$0")/.."
version=2.16.0
out=.cache/librdkafka/$version
if [ ! -f "$out/librdkafka.so.1" ]; then
    mkdir -p .cache/librdkafka
    part=$(mktemp -d .cache/librdkafka/part.XXXXXX)
    trap 'rm -rf "$part"' EXIT
    python3 -m venv "$part/venv"
    "$part/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: \
        "confluent-kafka==$version" >"$part/log" 2>&1 || {
        tail -n 20 "$part/log" >&2
        echo "librdkafka: cannot fetch confluent-kafka $version" >&2
        exit 69
    }
    mkdir "$part/new"
    cp "$part"/venv/lib/python3*/site-packages/confluent_kafka.libs/librdkafka-*.so.1 \
        "$part/new/librdkafka.so.1"
    mv -T "$part/new" "$out" 2>/dev/null || [ -f "$out/librdkafka.so.1" ]
fi
echo "$PWD/$out"
