"""Every method keeps the contract of ``Method``; the DQN holds its own against chance."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
from synthetic import problem, scorer

from hwloop.search.methods import METHODS
from hwloop.search.problem import BudgetSpent, Choices, Evaluate, Problem, Score
from hwloop.search.reward import Reward

NAMES = sorted(METHODS)


def asked_by(
    name: str,
    known: Problem,
    *,
    evaluations: int = 20,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    reward: Reward | None = None,
) -> list[tuple[Choices, str]]:
    """What a method asks for, in order."""
    asked: list[tuple[Choices, str]] = []
    score = evaluate if evaluate is not None else scorer(known)

    def noted(choices: Choices, source: str) -> Score:
        asked.append((choices, source))
        return score(choices, source)

    METHODS[name](known, noted, evaluations=evaluations, seed=seed, reward=reward or Reward())
    return asked


@cache
def undisturbed(name: str, seed: int = 0) -> list[tuple[Choices, str]]:
    """What a method asks for in one search that several tests hold another against."""
    return asked_by(name, problem(5, 8, max_drop=0.01), seed=seed)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", [{"max_drop": 0.01}, {"budget_share": 0.7}])
def test_same_seed_same_legal_candidates_each_asked_for_once(
    name: str, limit: dict[str, Any]
) -> None:
    known = problem(5, 8, **limit)
    first = asked_by(name, known)
    assert first == asked_by(name, known)
    assert 0 < len(first) <= 20
    assert len({choices for choices, _ in first}) == len(first)
    for choices, source in first:
        assert all(known.masks[group][action] for group, action in enumerate(choices))
        assert all(type(action) is int for action in choices)
        assert source


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"greedy"}))
def test_another_seed_asks_for_other_candidates(name: str) -> None:
    assert undisturbed(name, seed=0) != undisturbed(name, seed=1)


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_search_is_resumed_by_repeating_it_with_the_known_scores(name: str) -> None:
    known = problem(5, 8, max_drop=0.01)
    truth = scorer(known)
    memo: dict[Choices, Score] = {}

    def interrupted(choices: Choices, source: str) -> Score:
        if len(memo) == 7:
            raise KeyboardInterrupt
        return memo.setdefault(choices, truth(choices, source))

    with pytest.raises(KeyboardInterrupt):
        asked_by(name, known, evaluate=interrupted)

    def resumed(choices: Choices, source: str) -> Score:
        return memo.setdefault(choices, truth(choices, source))

    assert asked_by(name, known, evaluate=resumed) == undisturbed(name)
    assert len(memo) <= 20


@pytest.mark.parametrize("name", NAMES)
def test_it_returns_when_the_caller_has_no_budget_left(name: str) -> None:
    known = problem(5, 8, max_drop=0.01)
    truth, allowed = scorer(known), 3

    def stingy(choices: Choices, source: str) -> Score:
        nonlocal allowed
        if not allowed:
            raise BudgetSpent
        allowed -= 1
        return truth(choices, source)

    assert len(asked_by(name, known, evaluate=stingy)) <= 4


@pytest.mark.parametrize("name", NAMES)
def test_it_ends_when_there_is_nothing_left_to_find(name: str) -> None:
    known = problem(2, 3, max_drop=0.01)
    assert len(asked_by(name, known, evaluations=30)) <= 6


@pytest.mark.parametrize("name", NAMES)
def test_a_network_without_a_choice_is_searched_in_one_evaluation(name: str) -> None:
    known = problem(3, 1, max_drop=0.01)
    assert [choices for choices, _ in asked_by(name, known)] == [known.dense]


@pytest.mark.parametrize("name", NAMES)
def test_failures_are_survived(name: str) -> None:
    known = problem(4, 8, max_drop=0.01)
    truth = scorer(known)

    def fragile(choices: Choices, source: str) -> Score:
        if choices[1] >= 4:
            return Score(metric_drop=None, latency_ms=None, failed="build: no kernel")
        return truth(choices, source)

    assert asked_by(name, known, evaluate=fragile, evaluations=12)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_known_beforehand_is_not_asked_for_and_counts(name: str) -> None:
    plain = problem(5, 8, max_drop=0.01)
    truth = scorer(plain)
    first = [choices for choices, _ in asked_by(name, plain, evaluations=8)]
    known = {choices: truth(choices, "known") for choices in first}
    more = asked_by(name, dataclasses.replace(plain, known=known), evaluations=14)
    assert 0 < len(more) <= 14 - len(known)
    assert not {choices for choices, _ in more} & known.keys()


@pytest.mark.parametrize("name", NAMES)
def test_the_linear_reward_needs_no_limit(name: str) -> None:
    known = problem(4, 8)
    assert asked_by(name, known, evaluations=12, reward=Reward(kind="linear", lam=0.05))


@pytest.mark.parametrize("name", ["dqn", "planner", "local", "random"])
def test_what_is_asked_for_fits_the_predicted_budget(name: str) -> None:
    known = problem(6, 8, budget_share=0.7)
    for choices, _ in asked_by(name, known):
        assert known.predict_ms(choices) <= 0.7 * known.baseline_ms


@pytest.mark.parametrize("limit", [{"max_drop": 0.02}, {"budget_share": 0.6}])
def test_the_dqn_is_not_behind_random_search(limit: dict[str, Any]) -> None:
    def best(name: str, seed: int) -> float:
        known = problem(8, 8, seed=seed, **limit)
        truth = scorer(known, seed=seed)
        asked = asked_by(name, known, evaluations=24, seed=seed, evaluate=truth)
        return max(Reward()(truth(choices, source), known) for choices, source in asked)

    for seed in range(3):
        assert best("dqn", seed) > best("random", seed)


def test_the_list_of_methods_does_not_load_torch() -> None:
    code = "import sys, hwloop.search.methods; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
