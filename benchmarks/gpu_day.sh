#!/usr/bin/env bash
# The day with a GPU: one subcommand at a time, each at most 10 minutes; each summary becomes a row of RESULTS.md with
# the device and the commit.
#
#   benchmarks/gpu_day.sh ceilings     TFLOP/s and GB/s at the shapes of a step
#   benchmarks/gpu_day.sh step         batches of 1 to 16: the literal plan, this recipe, compiled, and in fp8
#   benchmarks/gpu_day.sh memory       what fits 20 and 24 GB
#   benchmarks/gpu_day.sh profile      kernels by name, and their share of the time
#   benchmarks/gpu_day.sh run          200 steps of `recipe train` with the real loader
#   benchmarks/gpu_day.sh eval         500 images of `recipe evaluate`; the loader and the metrics alone
#   benchmarks/gpu_day.sh step --dry-run     any of them small, on the CPU: only that it runs; RESULTS.md stays
set -euo pipefail
cd "$(dirname "$0")/.."
usage() { sed -n '2,12s/^# \{0,1\}//p' benchmarks/gpu_day.sh >&2; exit 2; }
what=${1:-}; dry=${2:-}
[[ $what =~ ^(ceilings|step|memory|profile|run|eval)$ && $dry =~ ^(--dry-run)?$ ]] || usage
python=${PYTHON:-.venv/bin/python}
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1
out=outputs/gpu_day
mkdir -p "$out"
if [[ $dry ]]; then
    step=(--rounds 2) sides=(plan ours) batches="1 2" memories="20" images=40 evaluated=8 steps=4
    ceilings=(--tokens 64) backbone=tiny edges=(--shortest_edge 64 --longest_edge 96)
else
    step=(--size large --edges 960 1536 --device cuda) sides=(plan ours compiled fp8)
    batches="1 2 4 8 16" memories="20 24" images=1000 evaluated=500
    ceilings=(--device cuda) backbone=$out/backbone edges=() steps=200
fi

measure() {  # runs a command and notes its last line that begins with "summary:"
    echo "\$ $*"
    timeout 600 "$@" 2>&1 | tee "$out/last.log" || echo "summary: did not end within 10 minutes, or failed" | tee -a "$out/last.log"
    local found
    found=$(sed -n 's/^summary: //p' "$out/last.log" | tail -1)
    [[ -z $found ]] || note "$*" "$found"
}

note() {  # command, result
    local device commit
    device=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 || true)
    commit=$(git rev-parse --short HEAD)
    local row="| $what | $2 | \`${1/$python/python}\` | ${device:-CPU} | $commit |"
    if [[ $dry ]]; then echo "$row"; else echo "$row" >> benchmarks/RESULTS.md; fi
}

data() {  # a packed set of 3-megapixel photographs, and a random backbone of ViT-L's size
    [[ -d $out/packed-$images ]] || "$python" - <<PYTHON
import sys; sys.path.insert(0, "benchmarks")
from pathlib import Path
from packing import make_folder
from data_prep.shards import pack
from transformers import DINOv3ViTBackbone
from recipe.model.backbone import large_backbone
out = Path("$out")
make_folder(out / "yolo-$images", $images)
pack(out / "yolo-$images", out / "packed-$images")
if "$backbone" != "tiny":
    DINOv3ViTBackbone(large_backbone()).save_pretrained("$backbone")
PYTHON
}

case $what in
    ceilings) measure "$python" benchmarks/ceilings.py "${ceilings[@]}" ;;
    step)
        for batch in $batches; do
            measure "$python" benchmarks/train_step.py "${step[@]}" --batch "$batch" --sides "${sides[@]}"
        done ;;
    memory)
        for gigabytes in $memories; do for batch in $batches; do
            measure "$python" benchmarks/train_step.py "${step[@]}" --batch "$batch" --memory_gb "$gigabytes"
        done; done ;;
    profile) measure "$python" benchmarks/train_step.py "${step[@]}" --sides "${sides[@]:1:2}" --profile ;;
    run)
        data
        rm -rf "$out/run"
        measure "$python" -m recipe.cli train --data "$out/packed-$images" --backbone "$backbone" --detr_init none \
            --output_dir "$out/run" --max_steps "$steps" --eval_strategy no --save_strategy no --report_to none \
            --load_best_model_at_end false --max_val_images 8 --logging_steps 10 "${edges[@]}"
        note "recipe train, $steps steps" "$(grep '^pace' "$out/last.log" || grep -o "'train_samples_per_second[^,]*" "$out/last.log")" ;;
    eval)
        [[ -d $out/run ]] || { echo "first: benchmarks/gpu_day.sh run $dry" >&2; exit 2; }
        measure "$python" -m recipe.cli evaluate "$out/run" --data "$out/packed-$images" --split train \
            --limit "$evaluated" --out "$out/evaluation"
        note "recipe evaluate, $evaluated images" "$(grep -o "'eval_samples_per_second[^,]*" "$out/last.log")"
        measure "$python" benchmarks/loader.py --images 12 --rounds 1
        measure "$python" benchmarks/metrics.py --images "$evaluated" --sides ours ;;
esac
