"""How far a network's outputs are from the dense one's, be they logits or anything else."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwloop.tasks.bulk import fitting, handed_back
from hwloop.tasks.protocol import ClassificationTask, Task


def divergence(task: Task, reference: NDArray[Any], outputs: NDArray[Any]) -> float:
    """How far outputs (N, ...) are from the dense network's; 0 where they are the same.

    Of logits, :func:`mean_kl`; of anything else :func:`unexplained`: a softmax of a single output
    is always 1, and one of large numbers hardly moves.
    """
    apart = mean_kl if isinstance(task, ClassificationTask) else unexplained
    return apart(reference, outputs)


def unexplained(reference: NDArray[Any], outputs: NDArray[Any]) -> float:
    """Squared differences over the reference's squared distances from its mean over the samples.

    The share of its variance that the outputs do not explain, above 1 where they are worse than
    the mean. Where the reference does not vary, the mean squared difference.
    """
    count = fitting(max(reference.nbytes, outputs.nbytes), len(reference))
    apart = spread = 0.0
    with handed_back(reference, outputs):
        middle = reference.mean(axis=0, dtype=np.float64)
        for start in range(0, len(reference), count):
            a, b = (value[start : start + count] for value in (reference, outputs))
            apart += float(np.square(a - b, dtype=np.float64).sum())
            spread += float(np.square(a - middle).sum())
    return apart / (spread or reference.size)


def mean_kl(reference: NDArray[Any], outputs: NDArray[Any]) -> float:
    """Mean KL divergence of softmax(outputs) from softmax(reference), in nats."""
    count = fitting(max(reference.nbytes, outputs.nbytes), len(reference))
    found = []
    with handed_back(reference, outputs):
        for start in range(0, len(reference), count):
            part = slice(start, start + count)
            a, b = (
                _log_softmax(value[part].reshape(len(value[part]), -1))
                for value in (reference, outputs)
            )
            found.append((np.exp(a) * (a - b)).sum(axis=1))
    return float(np.concatenate(found).mean())


def _log_softmax(values: NDArray[Any]) -> NDArray[Any]:
    shifted = values - values.max(axis=1, keepdims=True)
    result: NDArray[Any] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
