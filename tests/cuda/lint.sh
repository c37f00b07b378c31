#!/bin/sh
# Compiles every CUDA kernel, warnings as errors, and fails on register spills: Hopper's (those that
# include wgmma.cuh) for sm_90a, the others for each ARCH and to PTX of 8.0, as the build does; then holds
# the attention kernels' work lists against random steps (attention_lists_test.c). Finds or fetches a
# toolkit (tools/cuda_toolkit.sh); no GPU is needed. `make cuda-all` does it for all cards.
# usage: tests/cuda/lint.sh [ARCH...]   without one, 90a
set -eu
cd "$(dirname "$0")/../.."
root=$(tools/cuda_toolkit.sh)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
[ $# -gt 0 ] || set -- 90a
portable="-gencode=arch=compute_80,code=compute_80"
for arch; do
    portable="$portable -gencode=arch=compute_$arch,code=sm_$arch"
done
failed=0
for source in kernels/cuda/*.cu; do
    name=$(basename "$source" .cu)
    codes=$portable
    grep -q '#include "wgmma.cuh"' "$source" && codes="-gencode=arch=compute_90a,code=sm_90a"
    # $codes is a list of words
    # shellcheck disable=SC2086
    if ! "$root/bin/nvcc" -std=c++17 -O3 -I. -Werror all-warnings -Xptxas -v -Xcompiler -fPIC \
        $codes -c "$source" -o "$out/$name.o" >"$out/$name.log" 2>&1; then
        cat "$out/$name.log"
        echo "cuda: $source does not compile"
        failed=1
    fi
done
tests/cuda/spills.sh "$out"/*.log || failed=1
if ! ${CC:-cc} -std=gnu11 -g -O1 -fsanitize=address,undefined -Wall -Wextra -Werror -I. -isystem \
    "$root/include" tests/cuda/attention_lists_test.c engine/cuda_attention.c engine/base.c -o "$out/lists" ||
    ! "$out/lists"; then
    echo "cuda: the attention lists are wrong"
    failed=1
fi
[ $failed -eq 0 ] && echo "cuda: $(ls kernels/cuda/*.cu | wc -l) kernel files compile for $*, no spills"
exit $failed
