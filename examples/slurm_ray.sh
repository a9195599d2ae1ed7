#!/usr/bin/env bash
# `bench run` on all nodes of one Slurm job, through a Ray cluster that lives as long as the job (docs/scale.md).
#
#     sbatch examples/slurm_ray.sh --methods inp_former,dinomaly --dataset visa,mvtec_ad --seeds 0,1,2
#
# Everything after the name of the script goes to `bench run`. Submitting the same line again goes on where the job stopped.
# Wanted on every node: this Python environment (pip install 'inpbench[ray]') and the folders below, under the same paths.
#SBATCH --job-name=bench
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

export INPBENCH_RESULTS="${INPBENCH_RESULTS:-$PWD/results/runs}"                # shared
export INPBENCH_CACHE="${INPBENCH_CACHE:-${SLURM_TMPDIR:-/tmp}/inpbench-$USER}" # a disk of each node: decoded pixels
unset OMP_NUM_THREADS                                                           # a cell has as many threads as processors
export RAY_USAGE_STATS_ENABLED=0
if ray get-auth-token --help >/dev/null 2>&1; then # Ray 2.52 and newer: only who has this token may use the cluster
    ray get-auth-token --generate >/dev/null       # in the home folder, which the nodes share
    export RAY_AUTH_MODE=token
fi

nodes=${SLURM_JOB_NUM_NODES:-1}
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) # where this script runs
address=$(srun --nodes=1 --ntasks=1 --overlap --nodelist="$head" hostname -I | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 20000)) # jobs of one user may meet on a node
export RAY_ADDRESS="$address:$port"    # `--ray auto` then means this cluster, and never starts another one

# Ray's processes end with their step, hence --block and the ampersands.
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
srun --nodes=1 --ntasks=1 --overlap --nodelist="$head" \
    ray start --head --node-ip-address="$address" --port="$port" --num-cpus="$cpus" --num-gpus="$gpus" \
    --temp-dir="/tmp/ray-$SLURM_JOB_ID" --include-dashboard=false --block &
if ((nodes > 1)); then
    sleep 10 # for the head
    srun --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --overlap --exclude="$head" \
        ray start --address="$RAY_ADDRESS" --num-cpus="$cpus" --num-gpus="$gpus" --block &
fi

count='import ray, sys; ray.init("auto", logging_level="ERROR"); sys.exit(sum(n["Alive"] for n in ray.nodes()) < int(sys.argv[1]))'
for attempt in {1..30}; do # five minutes for all nodes to join; what joins later is used, too
    if python -c "$count" "$nodes" 2>/dev/null; then break; fi
    echo "waiting for $nodes nodes ($attempt)"
    sleep 10
done

# Two minutes before the time is up Slurm says TERM: cells stop in order, and their snapshots wait for the next job.
bench run "$@" --ray auto --display plain &
bench=$!
trap 'kill -TERM "$bench"' TERM
code=0
wait "$bench" || code=$?
if kill -0 "$bench" 2>/dev/null; then # `wait` came back for the signal, not for the end
    code=0
    wait "$bench" || code=$?
fi
exit "$code"
