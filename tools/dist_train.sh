#!/usr/bin/env bash
# dist_train.sh CONFIG PROCESSES [options of train.py]: one process for each GPU
# of this machine, or on a machine without GPUs processes on the CPU. Several
# machines: run it on each, with NNODES, NODE_RANK and MASTER_ADDR set.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "Usage: $0 CONFIG PROCESSES [options of train.py]" >&2
    exit 2
fi
python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$2" \
    "$(dirname "$0")/train.py" "$1" --launcher pytorch "${@:3}"
