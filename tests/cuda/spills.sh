#!/bin/sh
# Fails where ptxas says that a kernel spills registers. usage: tests/cuda/spills.sh LOG... (nvcc -Xptxas -v)
set -eu
failed=0
for log; do
    grep -q 'spill stores' "$log" || ! grep -q 'Compiling entry' "$log" || {
        echo "cuda: $log names kernels and no spills: has the wording changed?"
        failed=1
    }
    if grep 'spill' "$log" | grep -qv ' 0 bytes spill stores, 0 bytes spill loads'; then
        grep -E 'Compiling|spill' "$log" | grep -B1 'spill' | grep -v ' 0 bytes spill stores, 0 bytes spill loads'
        echo "cuda: $(basename "$log" .log) spills registers"
        failed=1
    fi
done
exit $failed
