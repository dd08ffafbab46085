#!/bin/bash
# LSF; jsrun starts the ranks. Edit a copy, then: bsub < lsf-jsrun.sh
#BSUB -J mpisign
#BSUB -nnodes 2
#BSUB -W 4:00
#BSUB -Q "99"                        # exit status 99: the job is queued again
#BSUB -o mpisign-%J.log
set -euo pipefail

RUN=${RUN:-$PWD/run}                              # this training's checkpoints, where all nodes see them
TRAIN=${TRAIN:-docs/examples/batch_training.py}   # what is trained; more arguments: below
RANKS=${RANKS:-8}                                 # in all: nodes x ranks of a node
SAVE_AFTER=${SAVE_AFTER:-14100}                   # seconds: -W less 300
GPUS=0                                            # GPU: 1, one rank a GPU
# source .venv/bin/activate
rm -f "$RUN/stopped"

export OMP_NUM_THREADS=7
# Settings of the network. Without them the libraries choose; --- GPU lines are for nodes with GPUs.
# export UCX_NET_DEVICES=mlx5_0:1    # UCX (under Open MPI, MPICH): the network card
# export OMPI_MCA_pml=ucx            # Open MPI: UCX or an error, instead of TCP without a word
# export NCCL_SOCKET_IFNAME=ib0      # GPU: the interface by which the ranks of NCCL find each other
# export NCCL_IB_HCA=mlx5            # GPU: the InfiniBand cards that NCCL takes
# export NCCL_DEBUG=WARN             # GPU: NCCL says why it fails
# export UCX_TLS=rc,sm,cuda          # GPU, CUDA-aware UCX: InfiniBand, shared memory, GPU memory
# export MPISIGN_CUDA_MPI=1          # GPU, CUDA-aware MPI that mpisign doctor does not recognise

# One resource set a rank. timeout sends USR1 to jsrun, which passes it on to all ranks.
timeout --foreground --preserve-status --signal=USR1 "$SAVE_AFTER" \
  jsrun -n "$RANKS" -a 1 -c "$OMP_NUM_THREADS" -g "$GPUS" python -m mpi4py "$TRAIN" "$RUN"

# No error, and the training script left this file: stopped by the signal. The same job once more, from its checkpoint.
[ ! -e "$RUN/stopped" ] || exit 99
