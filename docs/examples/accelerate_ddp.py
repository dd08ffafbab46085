"""EF-signSGD under Hugging Face Accelerate: one line after prepare(); stopped and resumed.

torchrun --nproc-per-node 2 docs/examples/accelerate_ddp.py
"""

import hashlib
import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, broadcast_object_list, gather_object
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import mpisign.accelerate

EPOCHS, BATCH, LR = 6, 16, 0.2


def fresh(accelerator, dataset):
    """What is trained, as it is before the first step."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    loader = DataLoader(dataset, BATCH, shuffle=True)
    model, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    # ef_sign keeps a residual, another one on each rank: save_state() has every rank save its own.
    mpisign.accelerate.register_comm_hook(accelerator, model, optimizer, "ef_sign")
    return model, optimizer, loader


def train(accelerator, model, optimizer, loader, epochs):
    for epoch in epochs:
        loader.set_epoch(epoch)
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = torch.nn.functional.cross_entropy(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()


def digest(model) -> str:
    parameters = [p.detach().numpy().tobytes() for p in model.parameters()]
    return hashlib.sha256(b"".join(parameters)).hexdigest()


def main() -> None:
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=2,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    dataset = TensorDataset(x[:1500], y[:1500])
    (folder,) = broadcast_object_list([tempfile.mkdtemp()])

    whole = fresh(accelerator, dataset)
    train(accelerator, *whole, range(EPOCHS // 2))
    accelerator.save_state(folder)
    train(accelerator, *whole, range(EPOCHS // 2, EPOCHS))

    accelerator.free_memory()
    model, optimizer, loader = fresh(accelerator, dataset)  # as in a new process
    accelerator.load_state(folder)
    train(accelerator, model, optimizer, loader, range(EPOCHS // 2, EPOCHS))

    digests = gather_object([digest(model), digest(whole[0])])
    assert len(set(digests)) == 1, "replicas differ, or the resumed run"
    accuracy = (model.module(x[1500:]).argmax(1) == y[1500:]).float().mean().item()
    size = accelerator.num_processes
    accelerator.print(f"accuracy {accuracy:.1%}; {size} replicas are bit-identical, resumed too")


if __name__ == "__main__":
    main()
    torch.distributed.destroy_process_group()
