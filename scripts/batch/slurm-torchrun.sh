#!/bin/bash
# Slurm; torchrun on each node starts its ranks, no MPI. Edit a copy, then: sbatch slurm-torchrun.sh
#SBATCH --job-name=mpisign
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1          # one torchrun a node
#SBATCH --cpus-per-task=32
##SBATCH --gpus-per-node=4           # GPU: remove one #
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@300            # to all ranks 300 s before the end: they save and stop
#SBATCH --requeue
#SBATCH --open-mode=append --output=%x-%j.log
set -euo pipefail

RUN=${RUN:-$PWD/run}                              # this training's checkpoints, where all nodes see them
TRAIN=${TRAIN:-docs/examples/batch_training.py}   # what is trained; more arguments: below
export RANKS=${RANKS:-4}                          # of a node; with GPUs as many as it has
# source .venv/bin/activate
rm -f "$RUN/stopped"

HOST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HOST OMP_NUM_THREADS=$(((SLURM_CPUS_PER_TASK + RANKS - 1) / RANKS)) SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# Settings of the network. Without them the libraries choose; --- GPU lines are for nodes with GPUs.
# export UCX_NET_DEVICES=mlx5_0:1    # UCX (under Open MPI, MPICH): the network card
# export OMPI_MCA_pml=ucx            # Open MPI: UCX or an error, instead of TCP without a word
# export NCCL_SOCKET_IFNAME=ib0      # GPU: the interface by which the ranks of NCCL find each other
# export NCCL_IB_HCA=mlx5            # GPU: the InfiniBand cards that NCCL takes
# export NCCL_DEBUG=WARN             # GPU: NCCL says why it fails
# export UCX_TLS=rc,sm,cuda          # GPU, CUDA-aware UCX: InfiniBand, shared memory, GPU memory
# export MPISIGN_CUDA_MPI=1          # GPU, CUDA-aware MPI that mpisign doctor does not recognise
# export GLOO_SOCKET_IFNAME=ib0      # the interface by which torch's Gloo connects ranks

# The signal comes to torchrun too, which it would end: the trap has torchrun ignore it.
# shellcheck disable=SC2016          # the variables are those of each node
srun bash -c 'trap "" USR1; exec torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="$RANKS" \
  --rdzv-backend=c10d --rdzv-endpoint="$HOST:$((20000 + SLURM_JOB_ID % 20000))" \
  --rdzv-id="$SLURM_JOB_ID" "$@"' torchrun "$TRAIN" "$RUN"

# No error, and the training script left this file: stopped by the signal. The same job once more, from its checkpoint.
[ ! -e "$RUN/stopped" ] || scontrol requeue "$SLURM_JOB_ID"
