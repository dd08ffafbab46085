#!/bin/bash
# Slurm; srun starts the ranks, MPI finds them by PMIx. Edit a copy, then: sbatch slurm-srun.sh
#SBATCH --job-name=mpisign
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4          # ranks of a node; with GPUs as many as it has
#SBATCH --cpus-per-task=8
##SBATCH --gpus-per-node=4           # GPU: remove one #
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@300            # to all ranks 300 s before the end: they save and stop
#SBATCH --requeue
#SBATCH --open-mode=append --output=%x-%j.log
set -euo pipefail

RUN=${RUN:-$PWD/run}                              # this training's checkpoints, where all nodes see them
TRAIN=${TRAIN:-docs/examples/batch_training.py}   # what is trained; more arguments: below
# source .venv/bin/activate
rm -f "$RUN/stopped"

export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# Settings of the network. Without them the libraries choose; --- GPU lines are for nodes with GPUs.
# export UCX_NET_DEVICES=mlx5_0:1    # UCX (under Open MPI, MPICH): the network card
# export OMPI_MCA_pml=ucx            # Open MPI: UCX or an error, instead of TCP without a word
# export NCCL_SOCKET_IFNAME=ib0      # GPU: the interface by which the ranks of NCCL find each other
# export NCCL_IB_HCA=mlx5            # GPU: the InfiniBand cards that NCCL takes
# export NCCL_DEBUG=WARN             # GPU: NCCL says why it fails
# export UCX_TLS=rc,sm,cuda          # GPU, CUDA-aware UCX: InfiniBand, shared memory, GPU memory
# export MPISIGN_CUDA_MPI=1          # GPU, CUDA-aware MPI that mpisign doctor does not recognise

srun --mpi=pmix python -m mpi4py "$TRAIN" "$RUN"

# No error, and the training script left this file: stopped by the signal. The same job once more, from its checkpoint.
[ ! -e "$RUN/stopped" ] || scontrol requeue "$SLURM_JOB_ID"
