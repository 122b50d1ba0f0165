#!/usr/bin/env bash
# Trains on several machines that ssh, parallel-ssh or your scheduler can start a command on: run this on each.
#
#   HEAD=node1:29500 NNODES=2 ./torchrun.sh --config omni_3b --config strategy/fsdp2
#
# HEAD      host:port that all machines reach; its machine must be among them (rendezvous of torchrun)
# NNODES    machines
# GPUS      processes of this machine, one for each GPU (default: what nvidia-smi lists)
# JOB       any name, the same on all machines, another one for another run on the same HEAD
# RESTARTS  how often the workers of all machines are started again after a failure (default 3)
set -euo pipefail

: "${HEAD:?host:port of the first machine}" "${NNODES:?number of machines}"
GPUS=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}

# `--resume` makes every start alike, the first one and those after a failure: go on from the newest intact
# checkpoint, start afresh where there is none. The run's folder must be on storage that all machines see.
exec torchrun \
    --nnodes "$NNODES" --nproc-per-node "$GPUS" \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "${JOB:-onn}" \
    --max-restarts "${RESTARTS:-3}" \
    -m onn_lightning fit "$@" --resume \
    --trainer.num_nodes "$NNODES" --trainer.devices "$GPUS"
