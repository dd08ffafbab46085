"""What ``mpisign bench WHAT --help`` says: (in one line, description, epilog) of each bench."""

from __future__ import annotations

from mpisign.bench.settings import KERNELS, MIXINGS, RULES
from mpisign.bench.training.names import COMPRESSORS

_KERNELS = """\
Measure packing, voting and unpacking against what this machine's memory can do.

No kernel can be faster than memory delivers its bytes. So each is timed in turns with plain loops
that read, write or copy as many bytes, and beside what one would write without mpisign: NumPy,
CuPy and torch expressions, DeepSpeed's code among them."""

_KERNELS_TABLE = """\
the table:
  time        median of one call; +- is half the distance between the quartiles (from 3 runs)
  moved       bytes that the operation must read and write, however it is done
  of limit    moved / time, as a share of the machine's read, write or copy speed, median of the
              rounds: near 1.00 is the end, above it what is written overlaps with what is read
              (read: the better of one place and of four at once; write, copy: of plain and of
              streaming stores; copied bytes count twice)
  goal        the share this project asks for at 25.6M coordinates, one thread; met or missed
  times one   with several --threads: how many times faster than the first of them (the goal of two
              is 1.6, where memory allows it); memory: how many times faster the limit became; left
              out below 131,072 coordinates, which one thread does alone
  faster than how many times longer plain expressions take: 17x DeepSpeed's code; below 1 the
              plain expression is faster: 0.51x packbits(x < 0)

A plane of 25.6M coordinates is 3.2 MB: called again and again with the same one, a kernel would
read its processor's cache, not memory. So calls take turns in copies that exceed four times the
last-level cache (--warm: no copies). Calls below 10,000 coordinates are always cached: there the
cost of the call itself is what counts. The largest size is measured with every option of every
kernel, the others with the usual ones only.

examples:
  mpisign bench kernels                              all, about a minute
  mpisign bench kernels --only pack,unpack           two of them
  mpisign bench kernels --sizes 1M,1G --runs 5       other sizes: 1k, 25.6M, 1e6, 2^28
  mpisign bench kernels --threads 1,2                how threads scale
  mpisign bench kernels --isa portable               code for any processor
  mpisign bench kernels --json all.json --plot ratios.png --markdown table.md
  mpisign bench kernels --device cuda                on a GPU, with CuPy (not tried by us yet)

kernels:
  """

_COLLECTIVES = """\
Measure votes between the ranks of this job, end to end: gradient in, vote out.

Votes by function and by plan stand beside what others send, in the same run and over the same wire:
allreduce in fp32 and fp16, NumPy's packbits, PowerSGD, DeepSpeed's 1-bit collective; and over MPI
beside the bare vote, persistent requests with fixed buffers and no checks. All take turns, so that
other load on the machine affects all alike. Start it with your job's launcher; scripts/netlab makes
one machine a cluster."""

_COLLECTIVES_TABLE = """\
rows:
  vote plan            plan = comm.plan_majority_vote(x); plan(x, out=out)
  vote auto, ...       comm.majority_vote(x, algorithm="auto", out=out)
  vote without out=    the result is new memory in every call
  vote random ties     zeros and ties random, as is the default; positive in all other rows
  vote async           several votes in flight
  vote weighted        by alltoall, weight=1 to 3
  vote DETOX 3         by alltoall, in groups of 3 ranks, where 3 divides the ranks of 6 or more
  bare ...             what a vote takes where nothing is agreed, checked or bounded in time
  (plan, without out=, random ties and async: the first of --algorithms)

the table, one for each size and wire:
  time        median of the calls, of the slowest rank each time; +- is half the quartiles' distance
  slowest     of these calls
  sent        bytes that a rank sends, on average; of votes as mpisign.stats() booked them, of
              others as their algorithm must; in scripts/netlab instead:
  on link     bytes counted at each node's network interface, mean of both directions, headers and
              all
  limit       what the method's bytes need at the rate of the link: in netlab the one set there,
              else the one measured in this run with plain messages between all ranks
  / limit     time / limit: near 1 is the end
  / bare      time / that of the faster bare vote (over MPI)
  x fp32      how many times faster than the fp32 allreduce of the same wire; x fp16 likewise
--json has more: sent in any case, and as nccl-tests defines them algbw, 4 bytes a coordinate /
time, and busbw, bytes that a rank receives / time.

Each call is timed by itself behind a barrier, as a step of training is, the peers' calls too: no
call hides in the end of the one before, and no rank runs ahead. A turn has up to 25 calls, as many
as take 0.05 s; short calls are measured over 200 times in 9 turns. Three calls before them do not
count. What could not run says why. Before anything is timed, results are compared between the
ranks, and with NumPy's where there is one right result.

goals: a run that a goal of this project speaks of says whether it was met. All are ratios of
medians of this run: on one node over MPI of 2 and 4 ranks to the bare vote and fp32; over Gloo and
Horovod to fp32; in netlab to the wire's limit (4 nodes, 1 Gbit/s, 25.6M), and of weighted,
hierarchical and grouped votes to the alltoall vote; of 8 nodes to 4, with --beside the run of 4.

examples:
  mpirun -n 2 mpisign bench collectives                      over MPI, about two minutes
  torchrun --nproc-per-node 2 --no-python mpisign bench collectives         over Gloo
  horovodrun -np 2 mpisign bench collectives --via horovod   over Horovod
  mpirun -n 2 mpisign bench collectives --via all-that-run   all of them
  scripts/netlab run -- mpirun -n 4 mpisign bench collectives --sizes 25.6M
  ... --sizes 25.6M --tensors resnet50                       as 161 tensors, not as one
  ... --only vote,bare,fp32 --algorithms auto                what a vote's guarantees cost
  ... --only vote --cost costs.json                          for MPISIGN_COSTS
  ... --beside four-nodes.json                               an earlier run's --json
  ... --json all.json --plot times.png --markdown table.md
(more ranks than cores: mpirun --oversubscribe --bind-to none)"""

_ROBUST = """\
Measure every rule of mpisign.robust against ByzFL's, in the same framework and process.

Each call is timed in turns with ByzFL's (where it is installed) and with plain loads that read the
rows once, below which no rule can be; the results are compared."""

_ROBUST_TABLE = """\
the tables, one a framework:
  time        median of one call; +- is half the distance between the quartiles
  of limit    what reading the rows once takes, by the time: near 1.00 is the end
  ByzFL       what its rule takes on the same rows; times: how many times longer
  goal        2x, or limit where the rule runs at .7 of the speed of memory; met or missed
  differs by  the largest difference of both results, by the largest magnitude

A mixing stands before a rule: nnm+krum, bucketing+median. Alone it gives rows.

examples:
  mpisign bench robust                                     all, some two minutes (idle)
  mpisign bench robust --rules median,nnm+krum --framework torch
  mpisign bench robust --rows 64 --size 100k --threads 2
  mpisign bench robust --json robust.json --markdown docs/results/robust.md

rules:
  """

_DETOX = """\
Measure what a step of DETOX computes beside plain robust rules, as ranks become more.

All ranks are threads of this process; each steps a mpisign.DistributedOptimizer on gradients that
are given. Votes of signs and robust rules in full precision, each in groups (DETOX) and without;
beside them the rule on the same rows in one place, and ByzFL's where it is installed."""

_DETOX_TABLE = """\
the tables:
  work        processor time of a step, all ranks together; +- is half the quartiles' distance
  a rank      work / ranks
  computing   of the work packing, hashing, rules, tallies and unpacking: without messages and
              the Python around them
  clock       what a step took here, where ranks take turns on one core
  sent        bytes that a rank sends
  of plain    work / that of the same rule without groups
  p^1.20      work grows with the ranks p as p^1.20, by least squares; nearly linear: up to 1.25
Ranks that are threads cannot show the time of a real job: divided by the ranks, work is what a
step takes where each has a core of its own and a free wire; "sent" shows what a wire carries.

examples:
  mpisign bench detox                                      about three minutes on an idle machine
  mpisign bench detox --ranks 9,27 --rules multi_krum
  mpisign bench detox --size 1M --ranks 9,15,27,45 --json detox.json --plot detox.png
  mpisign bench detox --markdown docs/results/detox.md"""

_TRAINING = """\
Measure whole training steps between the ranks of this job: what communication costs on top of
forward, backward and update, and how soon a fixed accuracy is reached.

A perceptron learns scikit-learn's digits, as wide as --parameters asks for. All methods take turns
in one run, mpisign's beside what others send and beside the same training without communication.
Start it with your job's launcher; scripts/netlab makes one machine a cluster."""

_TRAINING_TABLE = """\
methods (--ways takes any of them; a front end alone means one row for each --compression):
  none                 no communication at all: every rank trains for itself
  mpi                  mpisign.DistributedOptimizer(overlap=True): votes during backward, over MPI
  mpi-at-step          the same without overlap: one vote when step() is called
  horovod              mpisign.horovod.DistributedOptimizer
  horovod-unmodified   hvd.DistributedOptimizer(compression=mpisign.horovod.Compression...)
  ddp                  torch's DistributedDataParallel with mpisign.ddp's hook, over Gloo
  horovod-fp32, horovod-fp16               hvd.DistributedOptimizer as it comes
  ddp-fp32, ddp-fp16, ddp-powersgd         DistributedDataParallel, torch's own hooks
  mpi-lion, ddp-ef_sign, horovod-sign ...  a front end with one compressor
  optim-onebit-adam, optim-onebit-lamb     mpisign.optim's, once they compress, over MPI
  deepspeed-onebit-adam                    DeepSpeed 0.19.6's, over its MPI backend, NumPy for CuPy
compressors: %s

the table of steps:
  step       seconds of a step of the slowest rank, median of the rounds; +- is half the quartiles'
             distance. Ways take turns, another goes first in each round, each begins a new model
             and warms up; the first round does not count
  x none     to the step without communication of the same round, median: 1.00 is free
  x fp16     how many times faster than Horovod's fp16 step of the same round
  on link    bytes counted at each node's interface, mean of both directions (only in netlab)
  sent       bytes that a rank sent of a step, as mpisign.stats() books them
  cpu        processor time of a rank, all of its threads
  replicas   whether all ranks end with the same parameters, bit for bit

the table of --accuracy:
  steps to, seconds to   until the test accuracy is reached, mean over seeds; evaluating is not
                         counted, all else is measured, every step of it
  x fp16                 how many times less time than Horovod with fp16
  final                  accuracy at the end of the schedule, mean; +- half best minus worst seed

the table of --memory:
  state      bytes that a checkpoint holds of momenta and residuals
  traced     peak during a step of what Python's tracemalloc sees, NumPy's memory with it, beyond
             the step without communication; planes: the same in planes, d / 8 bytes
  resident   the same by the kernel, state left out: every library's memory
  limit      one plane and one bucket of gradients, which this project allows itself

examples:
  scripts/netlab run --nodes 4 --rate 1gbit -- mpirun -n 4 mpisign bench training
  ... --ways none,horovod,horovod-fp16 --parameters 20M --batch-size 32
  ... --ways none,mpi,ddp --compression signum,lion,ef_sign
  ... --accuracy 0.95 --seeds 3 --json accuracy.json --plot accuracy.png
  mpirun -n 4 mpisign bench training --tune --ways horovod-fp16,ddp    which learning rates
  ... --accuracy 0.95 --lr ddp-signum=1e-4                            and to take another
  mpirun -n 4 mpisign bench training --memory
(more ranks than cores: mpirun --oversubscribe --bind-to none)

exit status: 0; 1 if replicas differ; 2 for what you can put right"""


def _folded(words: tuple[str, ...], at: int) -> str:
    return ", ".join(words[:at]) + ",\n  " + ", ".join(words[at:])


_SCALE = """\
Count what majority votes send and hold among ranks that need not exist.

The sizes are those by which a vote cuts its memory, or the collective itself runs, over a wire that
counts, with memory that takes no room; nothing is measured but the code. All figures are of the
busiest rank, one way, in calls after the first of their kind."""

_SCALE_TABLE = """\
the tables:
  messages, bytes  that the rank sends in a vote; as many come
  memory           of buffers, beyond gradient and result; at most 3 planes and 64 MiB
  agreement        what goes besides the vote: preambles, digests of headers, counts of NaN
  what auto takes  by the costs of exchanges: those in --costs, else of two made-up networks

examples:
  mpisign bench scale --markdown docs/scale.md --plot docs/images/scale.png
  mpisign bench scale --ranks 32,64 --sizes 25.6M --node 4 --costs costs.json"""

_PREDICT = """\
Compare what mpisign predict says with measured training steps, between the ranks of this job.

A perceptron of each size trains on scikit-learn's digits. Its step without communication, the
kernels and the network are measured first, by all ranks at once; from these the steps of every
method are predicted, then measured, all over torch's Gloo. Start it between nodes: scripts/netlab
makes one machine a cluster."""

_PREDICT_TABLE = """\
the table:
  alone      the step without communication, which predictions start from
  predicted  by the equations of mpisign predict from what was measured before
  measured   median of the steps, of the slowest rank
  off        of the measured step; negative: the prediction is too short; met: within 15%
fp32 and fp16 are DistributedDataParallel's, PowerSGD (rank 1, one bucket) torch's hook, votes
(signum) and ef_sign mpisign.DistributedOptimizer's.

examples:
  scripts/netlab run --nodes 4 --rate 100mbit -- mpirun mpisign bench predict
  ... --sizes 1M,25M --repeat 2 --json steps.json --plot steps.png
  torchrun --nproc-per-node 2 --no-python mpisign bench predict --sizes 1M"""

TEXTS = {
    "kernels": (
        "packing, voting and unpacking against the limits of memory",
        _KERNELS,
        _KERNELS_TABLE + _folded(KERNELS, 7),
    ),
    "collectives": (
        "votes between ranks against allreduce and others, over MPI, Gloo and Horovod",
        _COLLECTIVES,
        _COLLECTIVES_TABLE,
    ),
    "robust": (
        "robust rules against ByzFL's and the limit of memory",
        _ROBUST,
        _ROBUST_TABLE + _folded((*RULES, *MIXINGS), 6),
    ),
    "detox": (
        "a step of DETOX against plain robust rules, by simulated ranks",
        _DETOX,
        _DETOX_TABLE,
    ),
    "scale": (
        "what votes of up to 65,536 ranks would send and hold, counted without them",
        _SCALE,
        _SCALE_TABLE,
    ),
    "training": (
        "whole training steps, and time to an accuracy, against fp16, DDP and none",
        _TRAINING,
        _TRAINING_TABLE % _folded(COMPRESSORS, 6),
    ),
    "predict": (
        "what mpisign predict says against measured training steps",
        _PREDICT,
        _PREDICT_TABLE,
    ),
}
