#!/bin/bash
# PBS; mpiexec starts the ranks. Edit a copy, then: qsub pbs-mpiexec.sh
#PBS -N mpisign
#PBS -l select=2:ncpus=32:mpiprocs=4
##PBS -l select=2:ncpus=32:mpiprocs=4:ngpus=4      GPU: one rank a GPU; remove one # here, add one above
#PBS -l walltime=04:00:00
#PBS -j oe
set -euo pipefail
cd "$PBS_O_WORKDIR"

RUN=${RUN:-$PWD/run}                              # this training's checkpoints, where all nodes see them
TRAIN=${TRAIN:-docs/examples/batch_training.py}   # what is trained; more arguments: below
SAVE_AFTER=${SAVE_AFTER:-14100}                   # seconds: walltime less 300
AGAIN=${AGAIN:-pbs-mpiexec.sh}                    # this script, for the next job
# source .venv/bin/activate
rm -f "$RUN/stopped"

export OMP_NUM_THREADS=8                          # ncpus / mpiprocs
# Settings of the network. Without them the libraries choose; --- GPU lines are for nodes with GPUs.
# export UCX_NET_DEVICES=mlx5_0:1    # UCX (under Open MPI, MPICH): the network card
# export OMPI_MCA_pml=ucx            # Open MPI: UCX or an error, instead of TCP without a word
# export NCCL_SOCKET_IFNAME=ib0      # GPU: the interface by which the ranks of NCCL find each other
# export NCCL_IB_HCA=mlx5            # GPU: the InfiniBand cards that NCCL takes
# export NCCL_DEBUG=WARN             # GPU: NCCL says why it fails
# export UCX_TLS=rc,sm,cuda          # GPU, CUDA-aware UCX: InfiniBand, shared memory, GPU memory
# export MPISIGN_CUDA_MPI=1          # GPU, CUDA-aware MPI that mpisign doctor does not recognise

# PBS sends no signal before the end: timeout sends USR1 to mpiexec, which passes it on to all ranks.
timeout --foreground --preserve-status --signal=USR1 "$SAVE_AFTER" \
  mpiexec -n "$(wc -l < "$PBS_NODEFILE")" python -m mpi4py "$TRAIN" "$RUN"

# No error, and the training script left this file: stopped by the signal. Another job goes on from its checkpoint.
# qsub passes nothing on by itself: without -v that job would start anew in another folder.
[ ! -e "$RUN/stopped" ] || qsub -v RUN="$RUN",TRAIN="$TRAIN",SAVE_AFTER="$SAVE_AFTER",AGAIN="$AGAIN" "$AGAIN"
