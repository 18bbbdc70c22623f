"""The rivals: the same interface, the same budget of real evaluations, the same knowledge."""

from __future__ import annotations

import itertools

import numpy as np

from hwloop.search.ledger import Ledger, fits, mutated, random_choices, until_spent
from hwloop.search.planner import Planner
from hwloop.search.problem import Array, Choices, Problem, replaced

COEFFICIENTS_REDRAWN = 0.1
"""Share of the coefficients that a hill-climbing step of SPDY draws again."""

MAX_COEFFICIENT = 4.0
RESTART_CHANGES = 2


@until_spent
def search_random(ledger: Ledger, seed: int) -> None:
    """Uniformly random legal actions within the predicted budget."""
    rng = np.random.default_rng(seed)
    while True:
        ledger.evaluate(random_choices(ledger.problem, rng), "random")


@until_spent
def search_uniform(ledger: Ledger, seed: int) -> None:
    """One action for all groups; then one for the front part and another for the rest."""
    problem = ledger.problem
    actions = range(problem.action_count)
    plans = [problem.uniform(action) for action in actions]
    splits = range(1, problem.group_count)
    mixtures = [
        problem.uniform(front)[:split] + problem.uniform(back)[split:]
        for front, back, split in itertools.product(actions, actions, splits)
        if front != back
    ]
    order = np.random.default_rng(seed).permutation(len(mixtures))
    for choices in dict.fromkeys(plans + [mixtures[index] for index in order]):
        if fits(problem, choices):
            ledger.evaluate(choices, "uniform")


@until_spent
def search_greedy(ledger: Ledger, seed: int) -> None:
    """From dense, one change at a time, the largest saving per damage first.

    After NetAdapt (Yang et al. 2018, algorithm 1), with the damage table instead of a short
    training per proposal: a change that does not raise the reward is taken back and not tried
    again until another one was accepted. The result does not depend on the seed.
    """
    incumbent = ledger.problem.dense
    best = ledger.evaluate(incumbent, "greedy")
    improved = True
    while improved:
        improved = False
        for choices in _by_saving_per_damage(ledger.problem, incumbent):
            value = ledger.evaluate(choices, "greedy")
            if value > best:
                incumbent, best, improved = choices, value, True
                break


def _by_saving_per_damage(problem: Problem, incumbent: Choices) -> list[Choices]:
    now_ms = problem.latency_ms(incumbent)
    ranked = []
    for group, menu in enumerate(problem.menus):
        for action in menu:
            choices = replaced(incumbent, group, action)
            saved_ms = now_ms - problem.latency_ms(choices)
            more = problem.damage[group, action] - problem.damage[group, incumbent[group]]
            if saved_ms > 0:
                ranked.append((-saved_ms / max(float(more), 1e-6), choices))
    return [choices for _, choices in sorted(ranked)]


@until_spent
def search_planner(ledger: Ledger, seed: int) -> None:
    """Plans under random trust in each group's damage, then hill climbing on that trust.

    After SPDY (Frantar & Alistarh 2022, section 3.3): half of the evaluations draw all the
    coefficients, the others draw a tenth of the best ones again.
    """
    problem = ledger.problem
    rng = np.random.default_rng(seed)
    best_trust: Array = np.ones(problem.group_count)
    best = ledger.evaluate(_plan(problem, best_trust, stretch=1.0), "planner")
    while True:
        if ledger.fresh_progress < 0.5:
            trust = rng.uniform(0.0, MAX_COEFFICIENT, problem.group_count)
        else:
            again = rng.random(problem.group_count) < COEFFICIENTS_REDRAWN
            again[rng.integers(problem.group_count)] = True
            fresh = rng.uniform(0.0, MAX_COEFFICIENT, problem.group_count)
            trust = np.where(again, fresh, best_trust)
        value = ledger.evaluate(_plan(problem, trust, stretch=rng.uniform(0.25, 2.0)), "planner")
        if value > best:
            best, best_trust = value, trust


def _plan(problem: Problem, trust: Array, *, stretch: float) -> Choices:
    """The planner's answer to the goal; ``stretch`` varies the damage it may sum up to."""
    planner = Planner(problem, problem.damage * trust[:, None])
    if problem.budget_ms is not None and problem.max_drop is None:
        return planner.solve(problem.budget_ms)
    limit = problem.drop_scale if problem.max_drop is None else problem.max_drop
    plan = planner.fastest_within(problem.allowance * limit * stretch)
    if problem.budget_ms is not None and not fits(problem, plan):
        return planner.solve(problem.budget_ms)
    return plan


@until_spent
def search_local(ledger: Ledger, seed: int) -> None:
    """Hill climbing by single changes from the planner's solution, in random order.

    White et al. 2021 found it a strong baseline at this number of evaluations. When no single
    change helps, it goes on from the best candidate with two random changes.
    """
    problem = ledger.problem
    rng = np.random.default_rng(seed)
    believed = np.ones(problem.group_count)
    plans = [_plan(problem, believed, stretch=stretch) for stretch in (1.0, 0.5, 0.25)]
    incumbent = max(plans, key=lambda plan: ledger.evaluate(plan, "local"))
    while True:
        incumbent = _climbed(ledger, incumbent, rng)
        incumbent = ledger.elites(1)[0]
        for _ in range(RESTART_CHANGES):
            incumbent = mutated(problem, incumbent, rng)


def _climbed(ledger: Ledger, incumbent: Choices, rng: np.random.Generator) -> Choices:
    best = ledger.evaluate(incumbent, "local")
    improved = True
    while improved:
        improved = False
        menus = enumerate(ledger.problem.menus)
        moves = [replaced(incumbent, g, a) for g, menu in menus for a in menu if a != incumbent[g]]
        for index in rng.permutation(len(moves)):
            choices = moves[index]
            if not fits(ledger.problem, choices):
                continue
            value = ledger.evaluate(choices, "local")
            if value > best:
                incumbent, best, improved = choices, value, True
                break
    return incumbent
