#!/usr/bin/env bash
# Everything that needs a GPU: what the compiled kernels give, whether they touch what is not theirs, and how fast they are.
#
# Usage: apps/bench/gpu_proof.sh FOLDER [PART ...]
#   Without a PART all are run that this machine has not finished yet, the most telling first: call it again, at once,
#   until it says that nothing is left. Parts:
#   forms      one small problem of each form of each kernel, against the reference
#   scan       the scan against its peers, attention and the hardware
#   tests      the operators' generated cases on the GPU, over all cores; the tests marked gpu
#   upstream   the scan again, once mamba_ssm's CUDA kernel is built: begun first, in the background, from $MAMBA_SDIST
#              (mamba_ssm-*.tar.gz), for sm_90 alone
#   sanitizer  compute-sanitizer on the forms
#   training   a block and Vim-Ti against attention and DeiT-Ti, 197 to 6,085 tokens
#   compile    what ssm_kernels.offline reads in the machine code, by the Triton that is here
# A call ends within $BUDGET seconds (560), a part within $LIMIT (420) of them. Parts do not stop one another, and write
# what they have as they go: FOLDER holds summary.txt, the files of the part in progress, and results.tar.gz with all
# others. $WORK (ssm_gpu_proof in the temporary folder) keeps the peer and what is finished between calls.
# Needs torch, triton, pytest, hypothesis, jaxtyping; xdist helps; training also timm. PYTHON names another interpreter.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:?usage: apps/bench/gpu_proof.sh FOLDER [PART ...]}
shift
all="forms scan tests upstream sanitizer training compile" named=$#
parts=${*:-$all}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=${WORK:-${TMPDIR:-/tmp}/ssm_gpu_proof}
mkdir -p "$work/results" "$work/finished"
python=${PYTHON:-python3} limit=${LIMIT:-420} budget=${BUDGET:-560} device=${DEVICE:-cuda} seconds=${BENCH_SECONDS:-0.5} status=0
export PYTHONPATH="$PWD:$PWD/kernels:$work/peer${PYTHONPATH:+:$PYTHONPATH}" SSM_TEST_DEVICE=$device PYTHONUNBUFFERED=1
forms="apps/bench/gpu_forms.py"

say() { echo "$*" | tee -a "$out/summary.txt"; }

# pack: what is finished goes into one archive, for a borrowed machine may return few files.
pack() {
  cp "$out/summary.txt" "$work/results/" 2> /dev/null
  tar -czf "$out/results.tar.gz" -C "$work/results" .
}

# part NAME COMMAND...: run it in what is left of the time, its words to NAME.txt; one line says how it went.
part() {
  local name=$1 begun=$SECONDS rc=0 left=$((budget - SECONDS))
  shift
  [ $left -le "$limit" ] || left=$limit
  if [ $left -lt 15 ]; then
    say "$name: not begun, the time is used up"
    status=1
    return 1
  fi
  # An interrupt first: pytest then still says what failed.
  timeout --signal=INT --kill-after=10 $((left - 10)) "$@" > "$out/$name.txt" 2>&1 || rc=$?
  [ $rc -eq 0 ] || status=1
  say "$name: exit $rc after $((SECONDS - begun)) s; $(tail -n 1 "$out/$name.txt" | cut -c 1-160)"
  mv -f "$out/$name".* "$work/results/"
  pack
  [ $rc -ne 124 ] && [ $rc -ne 137 ]
}

# many FILE...: pytest over all cores where xdist is there; compiling the cases is what takes the time.
many() {
  local cores=()
  "$python" -c "import xdist" 2> /dev/null && cores=(-n "${WORKERS:-$(nproc)}")
  part tests "$python" -m pytest -q -rf --tb=short -p no:cacheprovider "${cores[@]}" -k "triton and not bad_input" "$@"
}

build_peer() {
  [ -f "$work/peer.pid" ] || [ -f "$work/finished/upstream" ] && return
  [ -f "${MAMBA_SDIST:-}" ] || { say "upstream: MAMBA_SDIST names no file, mamba_ssm is left out"; return; }
  local source="$work/peer_source"
  mkdir -p "$source" && tar -xzf "$MAMBA_SDIST" -C "$source" --strip-components 1
  # Of all architectures only this one: the others' flags are taken back where they are given.
  sed -E -i '/code=sm_90"/! s/cc_flag\.append\("arch=compute_[0-9]+,code=sm_[0-9]+"\)/cc_flag.pop()/' "$source/setup.py"
  MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE MAX_JOBS=${MAX_JOBS:-8} setsid nice "$python" -m pip install \
    --no-deps --no-build-isolation --no-compile --target "$work/peer" "$source" > "$work/results/peer.txt" 2>&1 < /dev/null &
  echo $! > "$work/peer.pid"
}

# wait_for_peer: as long as half of the time that is left.
wait_for_peer() {
  [ -f "$work/peer.pid" ] || return 0
  local until=$((SECONDS + (budget - SECONDS) / 2))
  while kill -0 "$(cat "$work/peer.pid")" 2> /dev/null && [ $SECONDS -lt $until ]; do sleep 1; done
  say "peer: $(tail -n 1 "$work/results/peer.txt" | cut -c 1-160)"
}

# scan NAME OPTION...: the benchmark, its table and numbers beside its words.
scan() {
  local name=$1
  shift
  part "$name" "$python" -m apps.bench scan --device "$device" --seconds "$seconds" --json "$out/$name.json" \
    --markdown "$out/$name.md" "$@"
}

run() {
  case $1 in
    forms) part forms "$python" "$forms" "$device" ;;
    scan) scan scan --impl triton one_exponential bidirectional reference sdpa ;;
    tests)
      local complete=0
      many tests/kernels/test_selective_scan.py tests/kernels/test_routed_scan.py tests/kernels/test_linear_recurrence.py \
        tests/kernels/test_causal_conv1d.py tests/kernels/test_chunked_scan.py || complete=1
      part tests_gpu "$python" -m pytest -q -rf --tb=short -p no:cacheprovider -m gpu tests/kernels || complete=1
      return $complete
      ;;
    upstream)
      [ -f "$work/peer.pid" ] || return 0
      wait_for_peer
      kill -0 "$(cat "$work/peer.pid")" 2> /dev/null && { say "upstream: the peer is still being built"; return 1; }
      scan upstream --impl triton mamba_ssm mamba_ssm_ref
      ;;
    sanitizer)
      if ! command -v compute-sanitizer > /dev/null; then
        say "sanitizer: compute-sanitizer is not here"
        return 0
      fi
      # Without PyTorch's cache every tensor is an allocation of its own, whose bounds are watched.
      for tool in memcheck racecheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 part "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" "$forms" "$device"
      done
      ;;
    training) part training "$python" -m apps.bench training --device "$device" --seconds "$seconds" --json "$out/training.json" ;;
    compile) part compile "$python" -m ssm_kernels.offline ;;
    *)
      echo "gpu_proof.sh: no part $1, expected some of $all" >&2
      status=2
      ;;
  esac
}

case " $parts " in *" upstream "*) build_peer ;; esac
left=()
for one in $parts; do
  if [ "$named" -eq 0 ] && [ -f "$work/finished/$one" ]; then continue; fi
  if [ "$named" -eq 0 ] && [ $((budget - SECONDS)) -lt 60 ]; then
    left+=("$one")
  elif run "$one"; then
    touch "$work/finished/$one"
  else
    left+=("$one")
  fi
done
[ ${#left[@]} -eq 0 ] && say "nothing is left" || { say "left for another call: ${left[*]}"; [ $status -ne 0 ] || status=1; }
pack
exit $status
