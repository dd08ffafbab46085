"""stub"""

import math


def learning_rate(step: int, steps: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))
