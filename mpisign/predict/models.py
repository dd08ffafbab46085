"""Models by name: the shapes of their parameters, in the order of the forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mpisign.bench.collectives.method import resnet50
from mpisign.bench.table import coordinates

Shape = tuple[int, ...]

_RESNET50 = "resnet50"
_SIDE = 1024  # of the matrices of a model that is only a number


@dataclass(frozen=True)
class ModelShapes:
    """A model as the exchange sees it: the shape of each parameter, first layer first."""

    name: str
    shapes: tuple[Shape, ...]

    @property
    def parameters(self) -> int:
        """Coordinates of the gradient."""
        return sum(map(math.prod, self.shapes))

    @property
    def sizes(self) -> list[int]:
        """Coordinates of each parameter."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(rows, columns) of the parameters that PowerSGD compresses: rows are the first axis."""
        return [(s[0], math.prod(s[1:])) for s in self.shapes if len(s) > 1]


def model_of(text: str | int) -> ModelShapes:
    """A model by its name, or by its number of parameters: matrices of 1,024 by 1,024.

    What is left over is one matrix as square as can be, and a vector.

    Args:
        text: a name of ``MODELS``, or a number of parameters.

    Returns:
        ModelShapes.

    Raises:
        KeyError: no such name.

    Example:
        >>> model_of("resnet50").parameters, model_of(1000).shapes
        (25557032, ((31, 32), (8,)))
    """
    if isinstance(text, str):
        return ModelShapes(text, tuple(MODELS[text]()))
    shapes: list[Shape] = [(_SIDE, _SIDE)] * (text // _SIDE**2)
    if left := text % _SIDE**2:
        rows = math.isqrt(left)
        rest = left - rows * (left // rows)
        shapes += [(rows, left // rows), *([(rest,)] if rest else [])]
    return ModelShapes(f"{coordinates(text)} parameters", tuple(shapes))


def _resnet50() -> Iterator[Shape]:
    """He et al. 2015. Convolutions as matrices: output channels x (input channels k k)."""
    sizes = resnet50()
    for i, size in enumerate(sizes):
        follows = sizes[i + 1] if i + 1 < len(sizes) else 0
        # A convolution is followed by the weights and biases of its normalisation.
        rows = follows if follows and size > follows and size % follows == 0 else 0
        yield (rows, size // rows) if rows else (size,)


def _transformer(
    layers: int, block: Sequence[Shape], before: Sequence[Shape], after: Sequence[Shape]
) -> Iterator[Shape]:
    yield from before
    for _ in range(layers):
        yield from block
    yield from after


def _bert_large() -> Iterator[Shape]:
    """Devlin et al. 2018: 24 layers of 1,024 units, with the pooler, as BertModel has it."""
    d, f = 1024, 4096
    square: list[Shape] = [(d, d), (d,)]
    block: list[Shape] = [*square * 4, (d,), (d,), (f, d), (f,), (d, f), (d,), (d,), (d,)]
    return _transformer(24, block, [(30522, d), (512, d), (2, d), (d,), (d,)], square)


def _gpt2_xl() -> Iterator[Shape]:
    """Radford et al. 2019: 48 layers of 1,600 units; the output shares the embedding's weights."""
    d = 1600
    block: list[Shape] = [
        (d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,), (d,), (d,), (d, 4 * d), (4 * d,),
        (4 * d, d), (d,),
    ]  # fmt: skip
    return _transformer(48, block, [(50257, d), (1024, d)], [(d,), (d,)])


def _llama_8b() -> Iterator[Shape]:
    """Llama 3 8B: 32 layers of 4,096 units, 8 heads of keys and values, 128,256 tokens."""
    d, kv, f = 4096, 1024, 14336
    block: list[Shape] = [(d, d), (kv, d), (kv, d), (d, d), (f, d), (f, d), (d, f), (d,), (d,)]
    return _transformer(32, block, [(128256, d)], [(d,), (128256, d)])


#: By name: what yields the shapes.
MODELS: dict[str, Callable[[], Iterator[Shape]]] = {
    _RESNET50: _resnet50,
    "bert-large": _bert_large,
    "gpt2-xl": _gpt2_xl,
    "llama-8b": _llama_8b,
}
