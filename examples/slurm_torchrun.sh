#!/bin/bash
# One large cell on all GPUs of several machines. Change the lines of #SBATCH, then: sbatch examples/slurm_torchrun.sh
#
# One torchrun a machine, one process a GPU; the batch of the recipe (16 images) is spread over all of them, so that more processes
# than images are of no use. A job that is ended before its time is sent again as it is: training goes on from its last snapshot,
# also on another number of GPUs. The folders of data, weights, cache and results are on a file system that every machine sees.
#SBATCH --job-name=bench
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue

set -euo pipefail

: "${INPBENCH_DATA:?export INPBENCH_DATA=folder with one sub-folder a data set}"
: "${INPBENCH_WEIGHTS:?export INPBENCH_WEIGHTS=folder of the encoder weights}"
export INPBENCH_CACHE="${INPBENCH_CACHE:-$PWD/cache}"

gpus=${SLURM_GPUS_ON_NODE:-4}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=$((${SLURM_CPUS_PER_TASK:-32} / gpus))

srun torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$gpus" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
    --no-python bench run --methods inp_former --dataset mvtec_ad,visa,real_iad --setting super_multi_class --results results/runs
