"""Trains in a batch system: a signal before the time limit saves it, and the next job goes on.

mpirun -n 2 python -m mpi4py docs/examples/batch_training.py

Any launcher does: scripts/batch/ has whole jobs. A batch script that finds FOLDER/stopped queues
its job again. FOLDER/done has the digest of what was trained.
"""

import argparse
import hashlib
from pathlib import Path

import torch

import mpisign
from mpisign import launcher

BATCH, INPUTS, CLASSES = 32, 64, 10


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Trains, saves when asked to, resumes.")
    parser.add_argument("folder", type=Path, nargs="?", default="run", help="of the checkpoints")
    parser.add_argument("--steps", type=int, default=2000, help="in all")
    parser.add_argument("--every", type=int, default=1000, help="steps from save to save")
    return parser.parse_args()


def batch(step: int, rank: int, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Depends on step and rank alone, so that a resumed run sees what it would have seen."""
    x = torch.randn(BATCH, INPUTS, generator=torch.Generator().manual_seed(1000 * step + rank))
    return x, (x @ teacher).argmax(1)


def main() -> None:
    mpisign.stop_on_signals()  # SIGUSR1 and SIGTERM: all ranks stop after the same step
    args, comm = arguments(), mpisign.Communicator()
    device = torch.device("cpu")
    if torch.cuda.is_available():  # one rank a GPU
        local = launcher.local_rank() or 0
        device = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(device)
    torch.manual_seed(0)  # equal on all ranks, and so are the models
    teacher = torch.randn(INPUTS, CLASSES)
    layers = [torch.nn.Linear(INPUTS, 128), torch.nn.ReLU(), torch.nn.Dropout(0.1)]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(128, CLASSES)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-3)
    mpisign.DistributedOptimizer(optimizer, model.named_parameters(), comm=comm)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)

    state = {"model": model, "optimizer": optimizer, "schedule": schedule}
    first = mpisign.checkpoint.load(args.folder, state, comm=comm)  # 0 where there is none
    if comm.rank == 0:
        print(f"starts at step {first} of {args.steps}, {comm.size} ranks, {device}", flush=True)
    for step in range(first, args.steps):
        x, y = batch(step, comm.rank, teacher)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x.to(device)), y.to(device))
        loss.backward()
        optimizer.step()
        schedule.step()
        done, stop = step + 1, mpisign.stop_requested()  # the same on all ranks
        if stop or done % args.every == 0 or done == args.steps:
            mpisign.checkpoint.save(args.folder, done, state, comm=comm)
        if stop and done < args.steps:
            if comm.rank == 0:
                (args.folder / "stopped").touch()
                print(f"stopped after step {done}, saved in {args.folder}", flush=True)
            return
    if comm.rank == 0:
        bits = b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters())
        text = f"{args.steps} steps, parameters {hashlib.sha256(bits).hexdigest()}"
        (args.folder / "done").write_text(f"{text}\n")
        print(text, flush=True)


if __name__ == "__main__":
    main()
