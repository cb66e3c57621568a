#!/usr/bin/env bash
# The first half hour on a GPU: what is right, then the operator, the step, large models, real
# training. Every block leaves its results behind even if the next never runs, and what fails does
# not end the rest: the last line counts it. Reports with hardware, versions and commit go to
# $OUT/gpu_*.json, what was printed to $OUT/gpu_*.txt.
#
#     bash benchmarks/gpu.sh [BLOCK ...]    # BLOCK: right operator step large training; all if none
#
# PYTHON  the interpreter (python)
# OUT     where results go (benchmarks)
# BCCD    a folder of that data set (docs/bccd.md), for the sweep; left out without it
# WEIGHTS the file of the backbone's weights for it
set -u
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python}
OUT=${OUT:-benchmarks}
mkdir -p "$OUT" || exit 2
failed=()

run() { # NAME COMMAND...: run it, keep what it prints
    local name=$1
    shift
    echo "--- $name: $*"
    "$@" 2>&1 | tee "$OUT/gpu_$name.txt"
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("$name")
}
check() { # PART...
    run "check_$1" "$PYTHON" scripts/gpu_check.py "$@" --device cuda --json "$OUT/gpu_check_$1.json"
}
bench() { # NAME BENCHMARK OPTION...
    local name=$1 benchmark=$2
    shift 2
    run "$name" "$PYTHON" scripts/bench.py "$benchmark" --device cuda "$@" --json "$OUT/gpu_$name.json"
}
train() { # NAME OVERRIDE...
    local name=$1
    shift
    run "$name" "$PYTHON" train.py "name=gpu_$name" 'logger=[csv]' trainer=gpu "$@"
}

right() {
    check env kernel train
    run tests "$PYTHON" -m pytest -q -o filterwarnings=default -m gpu tests
}
operator() {
    check tune
    check sdpa nms
    bench op op
}
step() {
    check syncs launches
    bench aux_heads aux_heads --batch 2 --precision bf16
    bench step_bf16 step --batch 2 --precision bf16 --profile --no-baseline
    bench step_fp32 step --batch 2 --no-baseline
    bench step_transformers step --experiment deformable_detr_two_stage_r50_1x_coco \
        --pair deformable_detr_two_stage_r50_1x_coco
}
large() {
    local swin=co_dino_5scale_swin_large_1x_coco vit=co_dino_5scale_vit_large_coco
    bench swin_large step --experiment "$swin" --precision bf16 --no-baseline
    bench vit_large step --experiment "$vit" --height 1280 --width 1280 --precision bf16 --no-baseline
    bench infer infer --precision bf16 --no-baseline
    bench infer_swin_large infer --experiment "$swin" --precision bf16 --no-baseline
}
training() {
    train once_bf16 debug=fast trainer.precision=bf16-mixed
    train once_fp16 debug=fast trainer.precision=16-mixed
    train once_deterministic debug=fast trainer.deterministic=true
    train built_in
    if [ -z "${BCCD:-}" ] || [ -z "${WEIGHTS:-}" ]; then
        echo "--- bccd: left out, BCCD and WEIGHTS name no files"
        return
    fi
    local heads job k=0 jobs=()
    for heads in '[]' '[atss]' '[atss,rcnn]'; do # side by side: small steps leave a GPU idle
        "$PYTHON" train.py experiment=finetune "data.root=$BCCD" name=gpu_bccd_k$k 'logger=[csv]' \
            trainer=gpu model=co_dino_small model.checkpointed=0 model.backbone.pretrained=false \
            "model.backbone.weights=$WEIGHTS" "aux_heads=$heads" augmentation=small \
            optimizer=finetune optimizer.lr=5e-4 data.batch_size=4 trainer.effective_batch=4 \
            data.cache=true schedule.epochs=24 trainer.check_val_every_n_epoch=3 \
            >"$OUT/gpu_bccd_k$k.txt" 2>&1 &
        jobs+=($!)
        k=$((k + 1))
    done
    for job in "${jobs[@]}"; do wait "$job" || failed+=(bccd); done
}

for block in "${@:-right operator step large training}"; do
    for name in $block; do
        case $name in
        right | operator | step | large | training) echo "=== $name" && "$name" ;;
        *) echo "$name: no such block: choose from right operator step large training" >&2 && exit 2 ;;
        esac
    done
done
echo "${#failed[@]} failed: ${failed[*]-}"
[ "${#failed[@]}" -eq 0 ]
