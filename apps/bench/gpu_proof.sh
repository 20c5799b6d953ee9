#!/usr/bin/env bash
# Everything that needs a GPU, in one call: the operators' own tests compiled, then the benchmark.
# Usage: apps/bench/gpu_proof.sh [FOLDER FOR RESULTS]; needs torch, triton, pytest, hypothesis and jaxtyping.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-gpu_proof}
mkdir -p "$out"
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}" SSM_TEST_DEVICE=cuda
status=0
python -m pytest tests/kernels/test_selective_scan.py -k "triton" -q \
  2>&1 | tee "$out/tests.txt" || status=1
python -m pytest tests/kernels -m gpu -q 2>&1 | tee -a "$out/tests.txt" || status=1
python -m apps.bench scan --device cuda --seconds 1 --json "$out/scan.json" --markdown "$out/scan.md" || status=1
if command -v compute-sanitizer > /dev/null; then
  compute-sanitizer --error-exitcode 1 python -m pytest tests/kernels/test_triton_gpu.py -m gpu -q \
    > "$out/sanitizer.txt" 2>&1 || status=1
fi
exit $status
