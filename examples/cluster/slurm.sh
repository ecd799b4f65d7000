#!/bin/bash
# bcu cleanse on 2 machines with 8 GPUs each:  sbatch examples/cluster/slurm.sh
# Model, pictures and output lie where all machines see them under the same path.
#SBATCH --job-name=bcu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=02:00:00
#SBATCH --signal=INT@120
#SBATCH --requeue

# Two minutes before its time is up the run stops between two steps and keeps its state; submitted once more,
# the same script goes on from there (and starts over where there is no state).
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 0 \
    --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID" \
    -m bcu_cli cleanse "$HOME/models/model.safetensors" \
    --images "$HOME/photos" --out "$HOME/models/clean.safetensors" \
    --method bcu --batch-size 1024 --resume --json > "$HOME/models/clean.json"
