"""What memory can do (kernels/limits.c)."""

def move(to: int, source: int, size: int, streaming: int, threads: int, /) -> bool:
    """Reads ``size`` bytes if ``to`` is 0, writes them if ``source`` is 0, else copies.

    Addresses and size are multiples of 64. ``streaming``: stores that go past the caches,
    or reads at four places at once.
    """
