#!/bin/bash
# Label on eight nodes of SLURM: `sbatch docs/cluster/slurm.sh`. Run it in a folder that all nodes share.
#SBATCH --job-name=label
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export RAY_ADDRESS="$head:6379" RAY_USAGE_STATS_ENABLED=0

srun --nodes=1 --ntasks=1 --overlap -w "$head" ray start --head --port=6379 --block &
sleep 20
srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --overlap --exclude="$head" \
  ray start --address="$RAY_ADDRESS" --block &
sleep 20

regionroute label --images photos --objects dog,cat --out data/pets --engine ray --device cuda
regionroute manifest pack data/pets --engine ray
