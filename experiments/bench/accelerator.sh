#!/usr/bin/env bash
# Every benchmark that has something to say on one GPU; figures and logs go to a folder.
#
#     experiments/bench/accelerator.sh OUT [PART ...]      # parts: see below; all unless named
#     TINY=1 experiments/bench/accelerator.sh OUT          # every part at a tiny size, on a CPU too
#
# Needs torch and transformers in the same environment; FAMILY names a folder for merge_files.py
# (base, ft0 ..), without which one of random weights is written to OUT/family.  A part that fails or
# takes too long leaves its log and does not stop the others; the exit code says whether one did.
set -u
[ $# -gt 0 ] || { echo "usage: $0 OUT [PART ...], a folder for the figures"; exit 2; }
out="$(realpath -m "$1")"; shift
all="steps gpm merges matrices parity opcm clip clip_eval decoder sweep files"
parts="${*:-$all}"
for part in $parts; do
  [[ " $all " == *" $part "* ]] || { echo "no part $part; there are $all"; exit 2; }
done
mkdir -p "$out" || exit 2
cd "$(dirname "$0")/../.."
python="${PYTHON:-python}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
failed=0

run() {  # name, seconds, script and its options: the figures go where its last options say
  local name="$1" most="${TINY:+600}" script="$3"; most="${most:-$2}"; shift 3  # a CPU may be busy
  local began=$SECONDS code
  timeout "$most" "$python" "experiments/bench/$script.py" "$@" > "$out/$name.log" 2>&1
  code=$?
  [ $code -eq 0 ] || failed=1
  echo "$name: exit code $code, $((SECONDS - began)) s"
}

FAST=task_arithmetic,magmax,ties,ties/leaf,mean,breadcrumbs,dare_ties,consensus,pcb,della
MATRIX=opcm,tsv_m,iso_c,iso_cts
if [ -n "${TINY:-}" ]; then
  FAST=task_arithmetic,ties MATRIX=iso_c,opcm
  few="--steps 60 --seeds 2" many="--steps 60 --seeds 4" gpm="--steps 60 --seeds 2" opcm="--blocks 1 --models 3 --repeat 1"
  merges="--blocks 1 --models 2 --repeat 1" matrices="--blocks 1 --models 2 --repeat 1 --steps 1 --only iso_c,opcm" parity="--models 2"
  clip="--models mini --batch 2 --steps 1 --rounds 1 --warmup 1 --forms eager" clip_eval="$clip --pictures 4"
  decoder="--small --rows 2 --length 16 --new 4 --repeat 1" sweep="--seeds 1 --factors 2" family="--blocks 1 --models 2"
  files="--methods linear ties"
else
  few="" many="--seeds 64" gpm="--seeds 5" opcm="" merges="--repeat 5" matrices="" parity=""
  clip="--gpu --models ViT-B/16 ViT-B/32" clip_eval="$clip --pictures 2000 --workers 16"
  decoder="--gpu" sweep="" family="" files="--repeat 3"
fi
# shellcheck disable=SC2086  # the options above are words
for part in $parts; do
  case "$part" in
    steps)
      run steps_8 90 continual_steps $few --save "$out/continual_steps_gpu.json"
      run steps_64 90 continual_steps $many --save "$out/continual_steps_gpu_64.json" ;;
    gpm) run gpm 120 continual_gpm $gpm --save "$out/continual_gpm_gpu.json" ;;
    merges)
      run merges_jit 150 merge_memory $merges --jit --only "$FAST" --out "$out"
      run merges 150 merge_memory $merges --only "$FAST,$MATRIX" --out "$out" ;;
    matrices) run matrices 150 matrix_merges $matrices --out "$out" ;;
    parity)
      run parity 120 device_parity $parity --only "$MATRIX,$FAST" --out "$out/device_parity.json"
      run parity_tf32 60 device_parity $parity --only "$MATRIX" --default-precision --out "$out/device_parity_tf32.json" ;;
    opcm)
      run opcm 60 opcm $opcm --json "$out/opcm_gpu.json"
      run opcm_torch 90 opcm $opcm --torch --json "$out/opcm_gpu.json" ;;
    clip) run clip 240 clip_train $clip --torch-python "$python" --out "$out/clip_gpu.json" ;;
    clip_eval) run clip_eval 180 clip_eval $clip_eval --torch-python "$python" --out "$out/clip_gpu.json" ;;
    decoder) run decoder 240 decoder $decoder --out "$out/decoder_gpu.json" ;;
    sweep) run sweep 240 sweep_timing $sweep --out "$out/sweep_timing_gpu.json" ;;
    files)
      [ -n "${FAMILY:-}" ] || run family 60 family "$out/family" $family
      run files 180 merge_files "${FAMILY:-$out/family}" $files --out "$out/scratch" --json "$out/merge_files_gpu.json" ;;
  esac
done
exit $failed
