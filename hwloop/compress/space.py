"""The search space as data: which actions exist, and which are legal for a group on a target.

Actions are values. A search that counts in numbers is given the menu's positions as its choices;
:func:`candidate` and :func:`choices_of` are the only way between the two.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np

from hwloop.compress import methods
from hwloop.compress.methods import method_of
from hwloop.compress.methods.method import Method
from hwloop.compress.rows import WEIGHTED, layer_configs, settled, shaping_groups
from hwloop.compress.rules import SpaceRules
from hwloop.records import KEEP, Action, Candidate, Group, Layer, Network
from hwloop.runtimes.known import writing
from hwloop.runtimes.rowkinds import kind_of

PRECISIONS = ("base", "int8", "fp8")
EVERYWHERE = ("base", "int8")
"""On every menu, masked where a target has no use for them: positions on it are stored."""

MIN_INT8_CHANNELS = 8
TOLD = {"base": 1.0, "int8": -1.0, "fp8": 0.0}
"""What a search sees of an action's precision."""

Choices = tuple[int, ...]
"""A position on the menu for each group."""

Masks = tuple[tuple[bool, ...], ...]
"""For each group, which actions of the menu are legal."""


# ------------------------------------------------------------------------------------- menu


def menu(rules: SpaceRules) -> tuple[Action, ...]:
    """Every action of the methods that a target can make use of; to leave a group alone is first.

    By precision, then in the order of the methods: what a new method adds moves nothing that a
    target without it has.
    """
    return _menu(methods.METHODS, rules.kinds, "fp8" in rules.precisions)


@functools.lru_cache
def _menu(known: tuple[Method, ...], kinds: tuple[str, ...], has_fp8: bool) -> tuple[Action, ...]:
    used = [method for method in known if method.kind in kinds]
    actions = tuple(
        Action(kind=action.kind, amount=action.amount, precision=precision)
        for precision in (PRECISIONS if has_fp8 else EVERYWHERE)
        for method in used
        for action in method.actions()
    )
    if not actions or actions[0] != KEEP:
        raise ValueError("to leave a group alone is the first action of every menu")
    return actions


def menu_features(rules: SpaceRules) -> tuple[tuple[float, ...], ...]:
    """(A, F) what a search may see of each action, in [-1, 1]: amount, precision, and its kind.

    Where the amount tells a kind from keeping, it is enough; every other is a feature of its own.
    """
    actions = menu(rules)
    told = {KEEP.kind, *(known.kind for known in methods.METHODS if known.told_by_amount)}
    further = [kind for kind in dict.fromkeys(a.kind for a in actions) if kind not in told]
    return tuple(
        (
            2 * action.amount - 1,
            TOLD[action.precision],
            *(1.0 if action.kind == kind else -1.0 for kind in further),
        )
        for action in actions
    )


def candidate(choices: Sequence[int], rules: SpaceRules) -> Candidate:
    actions = menu(rules)
    return Candidate(actions=tuple(actions[index] for index in choices))


def choices_of(value: Candidate, rules: SpaceRules) -> Choices:
    """Inverse of :func:`candidate`. Raises ValueError for an action that is not on the menu."""
    actions = menu(rules)
    return tuple(actions.index(action) for action in value.actions)


def check_candidate(value: Candidate, groups: int, actions: Iterable[Action]) -> None:
    """Raises ValueError for a candidate of another network, or with other actions than a menu's."""
    if len(value.actions) != groups or not set(value.actions) <= set(actions):
        raise ValueError("it is about another network")


def dense_candidate(network: Network) -> Candidate:
    """Every group left alone."""
    return Candidate(actions=(KEEP,) * len(network.groups))


def uniform(network: Network, action: Action, rules: SpaceRules) -> Candidate:
    """One action for all groups; where it is illegal, the nearest that leaves more.

    As where a layer is so narrow that a quarter of it is half of it: then half of it stays. Where
    no action of that kind is legal, its precision alone, or nothing.
    """
    actions = menu(rules)
    alike = [a for a in actions if (a.kind, a.precision) == (action.kind, action.precision)]
    wider = sorted((a for a in alike if a.amount > action.amount), key=lambda a: a.amount)
    options = (action, *wider, Action(precision=action.precision), KEEP)
    found = [
        next(option for option in options if option in actions and mask[actions.index(option)])
        for mask in masks(network, rules)
    ]
    return settled(network, found)


def shallow(network: Network, action: Action, rules: SpaceRules, *, every: int) -> Candidate:
    """One action for all groups, and every so-manieth residual block left out, from the last on.

    The dense network where one of both is not possible.
    """
    plain, dense = uniform(network, action, rules), dense_candidate(network)
    drop = next((action for action in menu(rules) if method_of(action).leaves_out), None)
    blocks = [index for index, group in enumerate(network.groups) if group.branch]
    if drop is None or not blocks or (plain == dense and action != KEEP):
        return dense
    actions = list(plain.actions)
    for index in blocks[::-1][::every]:
        actions[index] = drop
    return settled(network, actions)


def random_candidate(
    network: Network, rules: SpaceRules, rng: np.random.Generator, *, int8_share: float
) -> Candidate:
    """Random legal actions; each group is int8 with a probability of ``int8_share``, if it can.

    Where the target has FP8 as well, half of those are that.
    """
    actions = menu(rules)
    has_fp8 = "fp8" in rules.precisions
    choices = []
    for mask in masks(network, rules):
        legal = [index for index, allowed in enumerate(mask) if allowed]
        wanted = "int8" if rng.random() < int8_share else "base"
        if has_fp8 and wanted == "int8" and rng.random() < 0.5:
            wanted = "fp8"
        options = [index for index in legal if actions[index].precision == wanted] or legal
        choices.append(int(rng.choice(options)))
    return settled(network, [actions[index] for index in choices])


# ------------------------------------------------------------------------------------ masks


def legal_actions(
    group: Group, rules: SpaceRules, layers: tuple[Layer, ...] = ()
) -> tuple[bool, ...]:
    """Mask over the menu: False where the action is impossible, useless or a duplicate.

    Args:
        layers: the group's layers; without them only its width decides about int8, and nothing
            is fp8.
    """
    seen = set()
    mask = []
    for action in menu(rules):
        method = method_of(action)
        effect = (method.effect(action, group, rules), action.precision)
        allowed = (
            action.precision in rules.precisions
            and method.legal(action, group, layers, rules)
            and (action.precision == "base" or _quantized_pays(action, group, rules, layers))
            and effect not in seen
        )
        if allowed:
            seen.add(effect)
        mask.append(allowed)
    return tuple(mask)


def masks(network: Network, rules: SpaceRules) -> Masks:
    """The mask of every group; False for a precision that needs a kind of row that is refused."""
    found = _masks(network, rules)
    if not rules.refused_kinds:
        return found
    masked = {precision: _masked(network, rules, precision) for precision in PRECISIONS[1:]}
    return tuple(
        tuple(
            ok and index not in masked.get(action.precision, ())
            for action, ok in zip(menu(rules), mask, strict=True)
        )
        for index, mask in enumerate(found)
    )


def refused_kinds(
    network: Network, group: int, rules: SpaceRules, precision: str = "int8"
) -> tuple[str, ...]:
    """Those of the rules' refused kinds that a group so quantized would need, at its full width."""
    actions = [KEEP] * len(network.groups)
    actions[group] = Action(precision=precision)
    found: dict[str, None] = {}
    for layer in network.layers:
        if group in shaping_groups(layer):
            for config in layer_configs(network, layer, actions, rules):
                if config.precision == precision and kind_of(config) in rules.refused_kinds:
                    found[kind_of(config)] = None
    return tuple(found)


def quantized_masked(network: Network, rules: SpaceRules) -> tuple[int, ...]:
    """Indices of the groups that could be quantized, or otherwise, if no kind were refused."""
    masked = (_masked(network, rules, precision) for precision in PRECISIONS[1:])
    return tuple(sorted(set().union(*masked)))


def _masked(network: Network, rules: SpaceRules, precision: str) -> set[int]:
    own = [index for index, action in enumerate(menu(rules)) if action.precision == precision]
    return {
        index
        for index, mask in enumerate(_masks(network, rules))
        if any(mask[action] for action in own) and refused_kinds(network, index, rules, precision)
    }


def _masks(network: Network, rules: SpaceRules) -> Masks:
    members: dict[int, list[Layer]] = {}
    for layer in network.layers:
        if layer.out_group is not None and layer.config.op in WEIGHTED:
            members.setdefault(layer.out_group, []).append(layer)
    return tuple(
        legal_actions(group, rules, tuple(members.get(index, ())))
        for index, group in enumerate(network.groups)
    )


def _quantized_pays(
    action: Action, group: Group, rules: SpaceRules, layers: Iterable[Layer]
) -> bool:
    """False where quantized kernels are known to lose, or do not exist."""
    kept = method_of(action).channels(action, group, rules)
    widths = {layer: layer.config.out_channels * kept // group.channels for layer in layers}
    if action.precision == "fp8":
        pays = writing(rules.recipe).fp8_pays
        return bool(widths) and all(
            pays(layer.config, out_channels=width) for layer, width in widths.items()
        )
    if min(widths.values(), default=kept) < MIN_INT8_CHANNELS:
        return False
    runtime = writing(rules.recipe)
    return all(
        runtime.int8_pays(layer.config, out_channels=width, first=not layer.in_groups)
        for layer, width in widths.items()
    )
