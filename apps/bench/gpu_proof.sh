#!/usr/bin/env bash
# Everything that needs a GPU: what the compiled kernels give, whether they touch what is not theirs, and how fast they are.
#
# Usage: apps/bench/gpu_proof.sh FOLDER [PART ...]
#   FOLDER takes all results. Parts, in this order and by default all:
#   peer       build mamba_ssm's CUDA kernel for sm_90 in the background, from $MAMBA_SDIST (mamba_ssm-*.tar.gz)
#   compile    what ssm_kernels.offline reads in the machine code, by the Triton that is here
#   tests      the operators' generated cases on the GPU, and the tests marked gpu
#   sanitizer  compute-sanitizer on one small shape of each form
#   scan       the scan against its peers, attention and the hardware (waits for the peer)
#   training   a block and Vim-Ti against attention and DeiT-Ti, 197 to 6,085 tokens
# Each part ends by its own time limit ($LIMIT seconds, 540), writes its own files and does not stop the others; all small
# files are then in FOLDER/results.tar.gz. Where a call may not last that long: "peer compile tests" first, then the rest.
# Needs torch, triton, pytest, hypothesis, jaxtyping; training also timm. PYTHON names another interpreter.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:?usage: apps/bench/gpu_proof.sh FOLDER [PART ...]}
shift
parts=${*:-peer compile tests sanitizer scan training}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python} limit=${LIMIT:-540} device=${DEVICE:-cuda} status=0
export PYTHONPATH="$PWD:$PWD/kernels:$out/peer${PYTHONPATH:+:$PYTHONPATH}" SSM_TEST_DEVICE=$device PYTHONUNBUFFERED=1
forms="apps/bench/gpu_forms.py"

# part NAME COMMAND...: run it with the limit, its words to NAME.txt; one line says how it went.
part() {
  local name=$1 begun=$SECONDS rc=0
  shift
  timeout "$limit" "$@" > "$out/$name.txt" 2>&1 || rc=$?
  [ $rc -eq 0 ] || status=1
  echo "$name: exit $rc after $((SECONDS - begun)) s; $(tail -n 1 "$out/$name.txt" | cut -c 1-160)" | tee -a "$out/summary.txt"
}

build_peer() {
  [ -f "${MAMBA_SDIST:-}" ] || { echo "peer: MAMBA_SDIST names no file, mamba_ssm is left out" | tee -a "$out/summary.txt"; return; }
  local source="$out/peer_source"
  mkdir -p "$source" && tar -xzf "$MAMBA_SDIST" -C "$source" --strip-components 1
  # Of all architectures only this one: the others' flags are taken back where they are given.
  sed -E -i '/code=sm_90"/! s/cc_flag\.append\("arch=compute_[0-9]+,code=sm_[0-9]+"\)/cc_flag.pop()/' "$source/setup.py"
  MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE MAX_JOBS=${MAX_JOBS:-12} setsid "$python" -m pip install \
    --no-deps --no-build-isolation --no-compile --target "$out/peer" "$source" > "$out/peer.txt" 2>&1 &
  echo $! > "$out/peer.pid"
}

wait_for_peer() {
  [ -f "$out/peer.pid" ] || return 0
  local begun=$SECONDS
  while kill -0 "$(cat "$out/peer.pid")" 2> /dev/null && [ $((SECONDS - begun)) -lt "$limit" ]; do sleep 2; done
  echo "peer: waited $((SECONDS - begun)) s; $(tail -n 1 "$out/peer.txt" | cut -c 1-160)" | tee -a "$out/summary.txt"
}

for one in $parts; do
  case $one in
    peer) build_peer ;;
    compile) part compile "$python" -m ssm_kernels.offline ;;
    tests)
      part forms "$python" "$forms" "$device"
      part tests "$python" -m pytest -q -p no:cacheprovider -k "triton and not bad_input" tests/kernels/test_selective_scan.py \
        tests/kernels/test_routed_scan.py tests/kernels/test_linear_recurrence.py tests/kernels/test_causal_conv1d.py \
        tests/kernels/test_chunked_scan.py
      part tests_gpu "$python" -m pytest -q -p no:cacheprovider -m gpu tests/kernels
      ;;
    sanitizer)
      if command -v compute-sanitizer > /dev/null; then
        for tool in memcheck racecheck; do
          part "$tool" compute-sanitizer --tool $tool --error-exitcode 1 "$python" "$forms" "$device"
        done
      else
        echo "sanitizer: compute-sanitizer is not here" | tee -a "$out/summary.txt"
      fi
      ;;
    scan)
      wait_for_peer
      part scan "$python" -m apps.bench scan --device cuda --seconds "${BENCH_SECONDS:-1}" --json "$out/scan.json" --markdown "$out/scan.md"
      ;;
    training) part training "$python" -m apps.bench training --device "$device" --seconds "${BENCH_SECONDS:-1}" --json "$out/training.json" ;;
    *) echo "gpu_proof.sh: no part $one" >&2; status=2 ;;
  esac
done
(cd "$out" && tar -czf results.tar.gz --ignore-failed-read ./*.txt $(ls ./*.json ./*.md 2> /dev/null))
exit $status
