"""What the rows of the table say cannot pay: it is not searched.

A row that is no faster thin than wide, two kernels that do not beat one, INT8 that loses on a
target: such an action costs accuracy, and saves nothing in any of a few very different networks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hwloop.compress.space import Choices, Masks
from hwloop.compress.subject import Subject
from hwloop.measure.predict import Predictor
from hwloop.records import KEEP, Action, Candidate

NOISE = 0.03
"""Of what the layers of a group cost: a row is measured to 2 % of itself."""

LEAST_MS = 1e-9
SHARES = (1.0, 0.5)
"""Widths of the networks in which an action is tried."""


@dataclass(frozen=True, kw_only=True)
class Paying:
    """What is left to search.

    Attributes:
        masks: for each group, which actions of the menu are legal and may pay.
        unpaid: kind of action to how many legal ones cannot; a change of precision is a kind.
    """

    masks: Masks
    unpaid: dict[str, int]


def paying(subject: Subject, predictor: Predictor, *, noise: float = NOISE) -> Paying:
    """The legal actions without those that save nothing, by the rows, in any network.

    An action pays that saves time against the same precision without it, and in its precision
    against the base precision: in the dense network, or one of half the widths, each in base
    precision and as far as possible in INT8.
    """
    contexts, menu = list(_contexts(subject)), subject.menu
    masks, unpaid = [], Counter[str]()
    for group, mask in enumerate(subject.masks):
        legal = [action for action, ok in zip(menu, mask, strict=True) if ok]
        left = [a for a in legal if a == KEEP or _pays(predictor, contexts, group, a, legal, noise)]
        unpaid.update(_kind(action) for action in legal if action not in left)
        masks.append(tuple(action in left for action in menu))
    return Paying(masks=tuple(masks), unpaid=dict(sorted(unpaid.items())))


def _kind(action: Action) -> str:
    return action.precision if action.kind == KEEP.kind else action.kind


def _contexts(subject: Subject) -> Iterator[Choices]:
    """Networks around an action."""
    for share in SHARES:
        cut = KEEP if share == 1 else Action(kind="prune", amount=share)
        for precision in subject.rules.precisions:
            around = subject.uniform(replace(cut, precision=precision))
            yield subject.choices(Candidate(actions=around.actions))


def _pays(
    predictor: Predictor,
    contexts: Sequence[Choices],
    group: int,
    action: Action,
    legal: Sequence[Action],
    noise: float,
) -> bool:
    """Held against the same precision without it, and against it in base precision."""
    rivals = (Action(precision=action.precision), replace(action, precision="base"))
    return all(
        any(_saved(predictor, context, group, action, rival) > noise for context in contexts)
        for rival in rivals
        if rival != action and rival in legal
    )


def _saved(
    predictor: Predictor, context: Choices, group: int, action: Action, rival: Action
) -> float:
    """What an action saves against its rival, as a share of what the rival's layers cost."""
    with_it, without = (
        (*context[:group], predictor.menu.index(each), *context[group + 1 :])
        for each in (action, rival)
    )
    saved_ms = predictor(without) - predictor(with_it)
    return saved_ms / max(predictor.group_ms(without, group), LEAST_MS)
