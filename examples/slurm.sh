#!/bin/bash
# Train on several nodes: one torchrun a node, one process a GPU, which meet at a port of the first node.
#   sbatch --nodes 2 --gpus-per-node 8 examples/slurm.sh configs/ez_vsl_vggsound144k.yaml data.store=/fast/vggsound144k
# data.batch_size is of each process: the step has batch_size x nodes x GPUs clips. Every node needs the store at the
# same path, and the run folder must be on a shared file system. Slurm's SIGTERM, two minutes before the time limit,
# saves within the step, and the job goes back to the queue; so does one that is preempted.
#SBATCH --job-name whence
#SBATCH --ntasks-per-node 1
#SBATCH --cpus-per-task 64
#SBATCH --time 24:00:00
#SBATCH --signal TERM@120
#SBATCH --requeue
#SBATCH --open-mode append
set -u
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=1
# Compiled graphs outlive the job, whose /tmp may not.
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$HOME/.cache/whence-inductor}
srun --kill-on-bad-exit=1 .venv/bin/torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT" --rdzv-id "$SLURM_JOB_ID" \
    train.py "$@" --resume
code=$?
# torchrun says 1 whatever its processes say; the run itself knows whether it is done.
[ $code -eq 0 ] || scontrol requeue "$SLURM_JOB_ID"
