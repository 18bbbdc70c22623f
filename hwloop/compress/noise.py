"""Random inputs of the kind that a network is given: what checks and trials are made on."""

from __future__ import annotations

import torch
from torch import Tensor


def noise_like(example: Tensor, *, times: int = 1) -> Tensor:
    """The same noise each time: of zeros, or of one image, too much would be alike.

    Of whole numbers, as those of words are, the example's own in another order; of numbers that are
    never negative, as of sound or light, noise that is not either: some networks take its
    logarithm, or look a table up.

    Args:
        example: (N, ...), finite.
        times: as many inputs for each.

    Returns:
        (times * N, ...) of the example's type.
    """
    shape = (times * len(example), *example.shape[1:])
    generator = torch.Generator().manual_seed(0)
    values = example.detach().flatten()
    if bool((values == values.round()).all()) and bool((values != values[0]).any()):
        chosen = torch.randint(len(values), shape, generator=generator)
        return values[chosen]
    noise = torch.randn(shape, generator=generator)
    return (noise if bool((values < 0).any()) else noise.abs()).to(example.dtype)
