#!/bin/sh
# install.sh: the distribution's packages that a step needs, installed only when one is missing.
#   tools/install.sh run     what building and running takes
#   tools/install.sh demo    that, and the servers of `make demo`
#   tools/install.sh test    what building, running and the tests take
#   tools/install.sh cuda    what building the CUDA engine takes beside a toolkit
#   tools/install.sh bench   that, and the yardsticks of `make bench`
#   tools/install.sh image   what the steps of the Dockerfile need where no engine runs them
#   tools/install.sh golden  what remaking the golden files takes
# Debian 12 and Ubuntu 24.04. Asks dpkg first, so a machine that has everything pays milliseconds.
set -eu

run="gcc libc6-dev cmake ninja-build pkg-config git libjansson-dev libutf8proc-dev libssl-dev libsqlite3-dev sqlite3"
run="$run libpq-dev librdkafka-dev libhiredis-dev libmicrohttpd-dev"
cuda="g++ python3-venv"
tests="clang-14 libclang-rt-14-dev llvm-14 clang-format-14 ccache libcmocka-dev python3 $cuda python3-pytest python3-pytest-xdist"
tests="$tests postgresql pgbouncer python3-psycopg2 redis-server python3-redis kcat python3-confluent-kafka faketime spin default-jre-headless maven"
tests="$tests python3-yaml python3-jsonschema openssl"
# Texts and public tokenizers for the tests come out of registry packages; any npm will do.
command -v npm >/dev/null 2>&1 || tests="$tests npm"
# Modules with the schemas of Kubernetes and KEDA; any go will do.
command -v go >/dev/null 2>&1 || tests="$tests golang-go"
demo="postgresql redis-server default-jre-headless maven python3"
case "${1:-}" in
run) want=$run ;;
demo) want="$run $demo" ;;
test) want="$run $tests" ;;
cuda) want="$run $cuda" ;;
bench) want="$run $tests libopenblas0-pthread" ;;
image) want="debootstrap debian-archive-keyring python3-pytest default-jre-headless maven kcat openssl" ;;
golden) want="git python3 python3-venv npm" ;;
*)
    echo "usage: tools/install.sh run|demo|test|cuda|bench|image|golden" >&2
    exit 64
    ;;
esac

if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "install: no dpkg here; Debian 12 and Ubuntu 24.04 are installed by themselves." >&2
    echo "install: elsewhere install the equivalents of: $want" >&2
    exit 69
fi

# shellcheck disable=SC2086 # one word a package
have=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Provides}\n' 2>/dev/null |
    awk '$1 == "ii" { gsub(/,|\([^)]*\)/, " "); for (i = 2; i <= NF; i++) print $i }')
missing=
for package in $want; do
    case "
$have
" in
    *"
$package
"*) ;;
    *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null 2>&1; then
        as_root="sudo env DEBIAN_FRONTEND=noninteractive"
    else
        echo "install: missing:$missing" >&2
        echo "install: neither root nor sudo here; as root run: apt-get install -y$missing" >&2
        exit 69
    fi
fi
echo "install: fetching$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
fetch() {
    # shellcheck disable=SC2086
    $as_root apt-get install -y -qq --no-install-recommends $missing >"$log" 2>&1
}
# A fresh machine has no package lists yet: the first attempt fails there, the second has them.
if ! fetch; then
    if ! $as_root apt-get update -qq >"$log" 2>&1 || ! fetch; then
        tail -n 20 "$log" >&2
        echo "install: apt-get could not install:$missing" >&2
        exit 69
    fi
fi
