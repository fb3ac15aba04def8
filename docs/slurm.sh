#!/bin/bash
#SBATCH --job-name=gratis
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#
# sbatch docs/slurm.sh RECIPE [KEY=VALUE ...]
#
# One torchrun on each node. The run directory bears the job's number, so that a job that SLURM
# puts back into its queue goes on with its own run.
set -euo pipefail
recipe=$1
shift
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # else no node can join later
srun torchrun \
  --nnodes="1:$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" --max-restarts=3 \
  --rdzv-backend=c10d --rdzv-endpoint="$head:29400" --rdzv-id="$SLURM_JOB_ID" \
  -m gratis train "$recipe" --out "runs/$recipe-$SLURM_JOB_ID" ${@:+--set "$@"}
