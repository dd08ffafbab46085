#!/bin/bash
# Flux; flux run starts the ranks. Edit a copy, then: flux batch flux-run.sh
#flux: --job-name=mpisign
#flux: --nodes=2
#flux: --exclusive
#flux: --time-limit=4h
#flux: --output=mpisign-{{id}}.log
set -euo pipefail

RUN=${RUN:-$PWD/run}                              # this training's checkpoints, where all nodes see them
TRAIN=${TRAIN:-docs/examples/batch_training.py}   # what is trained; more arguments: below
RANKS=${RANKS:-8}                                 # in all: nodes x ranks of a node
LIMIT=${LIMIT:-235m}                              # a little less than the job's own
AGAIN=${AGAIN:-flux-run.sh}                       # this script, for the next job
GPU=()                                            # GPU: (--gpus-per-task=1), one rank a GPU
# source .venv/bin/activate
rm -f "$RUN/stopped"

export OMP_NUM_THREADS=8
# Settings of the network. Without them the libraries choose; --- GPU lines are for nodes with GPUs.
# export UCX_NET_DEVICES=mlx5_0:1    # UCX (under Open MPI, MPICH): the network card
# export OMPI_MCA_pml=ucx            # Open MPI: UCX or an error, instead of TCP without a word
# export NCCL_SOCKET_IFNAME=ib0      # GPU: the interface by which the ranks of NCCL find each other
# export NCCL_IB_HCA=mlx5            # GPU: the InfiniBand cards that NCCL takes
# export NCCL_DEBUG=WARN             # GPU: NCCL says why it fails
# export UCX_TLS=rc,sm,cuda          # GPU, CUDA-aware UCX: InfiniBand, shared memory, GPU memory
# export MPISIGN_CUDA_MPI=1          # GPU, CUDA-aware MPI that mpisign doctor does not recognise

# All ranks get USR1 five minutes before LIMIT: they save and stop.
flux run --ntasks="$RANKS" --cores-per-task="$OMP_NUM_THREADS" "${GPU[@]}" \
  --time-limit="$LIMIT" --signal=USR1@5m python -m mpi4py "$TRAIN" "$RUN"

# No error, and the training script left this file: stopped by the signal. Another job goes on from its checkpoint.
[ ! -e "$RUN/stopped" ] || flux --parent batch "$AGAIN"
