#!/usr/bin/env bash
# Every benchmark that has something to say on one GPU; figures and logs go to a folder.
#
#     experiments/bench/accelerator.sh OUT [PART ...]      # parts: see below; all unless named
#
# Needs torch and transformers in the same environment.  A part that fails or takes too long leaves
# its log and does not stop the others.
set -u
[ $# -gt 0 ] || { echo "usage: $0 OUT [PART ...], a folder for the figures"; exit 2; }
out="$(realpath -m "$1")"; shift
mkdir -p "$out" || exit 2
cd "$(dirname "$0")/../.."
python="${PYTHON:-python}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
all="steps merges parity opcm clip decoder"
parts="${*:-$all}"
for part in $parts; do
  [[ " $all " == *" $part "* ]] || { echo "no part $part; there are $all"; exit 2; }
done

run() {  # name, seconds, command...
  local name="$1" most="$2"; shift 2
  local began=$SECONDS
  timeout "$most" "$@" > "$out/$name.log" 2>&1
  echo "$name: exit code $?, $((SECONDS - began)) s"
}

FAST=task_arithmetic,magmax,ties,ties/leaf,mean,breadcrumbs,dare_ties,consensus,pcb,della
MATRIX=opcm,tsv_m,iso_c,iso_cts
for part in $parts; do
  case "$part" in
    steps)
      run steps_8 90 "$python" experiments/bench/continual_steps.py --save "$out/continual_steps_gpu.json"
      run steps_64 90 "$python" experiments/bench/continual_steps.py --seeds 64 --save "$out/continual_steps_gpu_64.json" ;;
    merges) run merges 150 "$python" experiments/bench/merge_memory.py --repeat 5 --only "$FAST,$MATRIX" --out "$out" ;;
    parity)
      run parity 120 "$python" experiments/bench/device_parity.py --only "$MATRIX,$FAST" --out "$out/device_parity.json"
      run parity_tf32 60 "$python" experiments/bench/device_parity.py --only "$MATRIX" --default-precision --out "$out/device_parity_tf32.json" ;;
    opcm)
      run opcm 60 "$python" experiments/bench/opcm.py --json "$out/opcm_gpu.json"
      run opcm_torch 90 "$python" experiments/bench/opcm.py --torch --json "$out/opcm_gpu.json" ;;
    clip) run clip 240 "$python" experiments/bench/clip_train.py --gpu --models ViT-B/16 ViT-B/32 \
      --torch-python "$python" --out "$out/clip_gpu.json" ;;
    decoder) run decoder 240 "$python" experiments/bench/decoder.py --gpu --out "$out/decoder_gpu.json" ;;
  esac
done
