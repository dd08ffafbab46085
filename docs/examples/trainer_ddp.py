"""Lion under Hugging Face's Trainer, by a callback: a tiny BERT reads digits; stopped and resumed.

torchrun --nproc-per-node 2 docs/examples/trainer_ddp.py
"""

import hashlib
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from mpisign.transformers import MajorityVoteCallback

STEPS, BATCH, LR = 24, 16, 2e-3


def digits() -> list[dict]:
    """The images as sequences of 16 sums of 4 pixels each."""
    images, labels = load_digits(return_X_y=True)
    tokens = torch.tensor(images).view(-1, 16, 4).sum(2).long()
    return [{"input_ids": t, "labels": int(y)} for t, y in zip(tokens, labels, strict=True)]


def train(folder, steps=STEPS, resume=None, **options):
    """A new model and Trainer, as in a new process."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 65, "hidden_size": 32, "num_hidden_layers": 1, "num_labels": 10}
    config = BertConfig(num_attention_heads=2, intermediate_size=32, **sizes)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=LR,
        lr_scheduler_type="constant",
        optim="sgd",  # steps on the votes; their momentum is the compressor's
        max_grad_norm=0,  # a vote is +1 or -1: the default, 1.0, would shrink it
        save_steps=STEPS // 2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    trainer = Trainer(BertForSequenceClassification(config), arguments, train_dataset=digits())
    votes = MajorityVoteCallback(trainer, "lion")
    trainer.add_callback(votes)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, votes


def digest(model) -> str:
    parameters = [p.detach().numpy().tobytes() for p in model.parameters()]
    return hashlib.sha256(b"".join(parameters)).hexdigest()


def main() -> None:
    folder = [tempfile.mkdtemp()]
    dist.init_process_group("gloo")
    dist.broadcast_object_list(folder)
    whole, _ = train(folder[0])  # saves after the half too
    half = Path(folder[0]) / f"checkpoint-{STEPS // 2}"
    resumed, votes = train(folder[0], resume=str(half))

    digests = [None] * dist.get_world_size()
    dist.all_gather_object(digests, (digest(resumed.model), digest(whole.model)))
    assert len({d for pair in digests for d in pair}) == 1, "replicas differ, or the resumed run"
    assert votes.state.steps == STEPS
    if dist.get_rank() == 0:
        print(f"{len(digests)} replicas are bit-identical after {STEPS} steps, resumed too")


if __name__ == "__main__":
    main()
    dist.destroy_process_group()
