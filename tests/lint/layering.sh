#!/bin/sh
# layering: worker -> engine -> kernels, never backwards; libraries stay in their room; the choice
# of a backend or vector unit by #ifdef stays in the file that is that backend.
set -u
cd "$(dirname "$0")/../.."
bad=0
# deny ROOM PATTERN WHY: no source of ROOM may hold a line that matches.
deny() {
    if git ls-files "$1/*.c" "$1/*.h" "$1/*.cu" "$1/*.cuh" | xargs -r grep -nE "$2" /dev/null; then
        echo "layering: $3" >&2
        bad=1
    fi
}
include='^[[:space:]]*#[[:space:]]*include[[:space:]]*'
deny kernels "$include[\"<](engine|worker|tests|tools)/" "kernels/ includes a room above it"
deny engine "$include[\"<](worker|tests|tools)/" "engine/ includes a room above it"
deny worker "$include[\"<](tests|tools)/" "worker/ includes tests or tools"
deny kernels "$include<(jansson|utf8proc|openssl|sqlite3|librdkafka|hiredis|libpq)" \
    "kernels/ uses a library of the rooms above"
deny engine "$include<(sqlite3|librdkafka|hiredis|libpq|microhttpd)" \
    "engine/ uses a library of worker/"
deny engine "$include\"kernels/(cpu|cuda)/" "engine/ sees kernels/ through kernels.h alone"
deny worker "$include\"kernels/(cpu|cuda)/" "worker/ sees kernels/ through kernels.h alone"
# Within worker/, commands/ stands on top: what runs a pod does not know that it was started by hand.
found=$(git ls-files 'worker/*.c' 'worker/*.h' | grep -vE '^worker/(commands/|bench/|main.c)' |
    xargs -r grep -nE "$include\"worker/(commands|bench)/" /dev/null)
if [ -n "$found" ]; then
    echo "$found"
    echo "layering: worker/ below its commands includes one of them" >&2
    bad=1
fi
deny worker '#[[:space:]]*if.*(CUDA|__AVX|__x86_64)' "worker/ asks for a backend with #if"

found=$(git ls-files 'engine/*.c' 'engine/*.h' | grep -v '^engine/backend_' |
    xargs -r grep -nE '#[[:space:]]*if.*(CUDA|__AVX|__x86_64)' /dev/null)
if [ -n "$found" ]; then
    echo "$found"
    echo "layering: engine/ asks for a backend with #if outside backend_*.c" >&2
    bad=1
fi
# Memory is taken through mem_alloc, so that limits and failing allocations have one place. (kernels/
# stands below base.h and takes its own, at cpu_open.)
found=$(git ls-files 'engine/*.c' 'worker/*.c' | grep -v '^engine/base.c$' |
    xargs -r grep -nE '[^_a-z](malloc|calloc|realloc|aligned_alloc|strdup)\(' /dev/null)
if [ -n "$found" ]; then
    echo "$found"
    echo "layering: memory is taken through mem_alloc (engine/base.h)" >&2
    bad=1
fi
exit $bad
