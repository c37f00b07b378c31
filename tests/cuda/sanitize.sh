#!/bin/sh
# sanitize: compute-sanitizer over the short cases of the kernel tests: attention, RoPE and page writes,
# sampler, the fused product. Needs a GPU and a toolkit's compute-sanitizer. Exit code 1: a report, or a
# command that did not end in LIMIT seconds.
# usage: [LIMIT=120] tests/cuda/sanitize.sh BUILD_DIR [TOOL...]   without one: memcheck racecheck initcheck synccheck
set -u
build=$1
shift
[ $# -gt 0 ] || set -- memcheck racecheck initcheck synccheck
PATH=$PATH:/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer
out=$(mktemp)
trap 'rm -f "$out"' EXIT
failed=0
check() {
    tool=$1
    shift
    from=$(date +%s)
    # More mbarriers than synccheck follows by itself: it ended with an error of its own.
    more=
    [ "$tool" = synccheck ] && more="--num-cuda-barriers 65536"
    # $more is a list of words
    # shellcheck disable=SC2086
    timeout "${LIMIT:-120}" compute-sanitizer --tool "$tool" $more --error-exitcode 66 --print-limit 20 "$@" >"$out" 2>&1
    rc=$?
    verdict="ok  "
    [ $rc -eq 0 ] || verdict=FAIL
    echo "$verdict $tool $(basename "$1") ${2:-} ${3:-}: exit $rc, $(($(date +%s) - from)) s," \
        "$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$out" | tail -n 1); $(grep ' passed, ' "$out" | tail -n 1)"
    [ $rc -eq 0 ] && return
    failed=1
    grep -E '=========|FAIL' "$out" | head -n 60
}
for tool; do
    # racecheck stops inside cuBLASLt's kernels with an error of its own, so the products with them are for memcheck.
    check "$tool" "$build/kernels_cuda_test" small attention
    check "$tool" "$build/sampler_cuda_test" small
    check "$tool" "$build/gemm_cuda_test" fused
    [ "$tool" = memcheck ] && check "$tool" "$build/kernels_cuda_test" small
done
exit $failed
