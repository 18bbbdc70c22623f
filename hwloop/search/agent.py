"""The DQN as a search method: what it tries first, how it proposes, and what it learns from.

``search_dqn`` anchors the Q-values on the planner, starts from seeds, screens its proposals and
learns from every evaluation at several budgets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwloop.search.dqn import DQN, DQNConfig
from hwloop.search.env import NetCompressEnv
from hwloop.search.ledger import Ledger, fits, mutated
from hwloop.search.planner import Planner
from hwloop.search.prior import Prior
from hwloop.search.problem import BudgetSpent, Choices, Evaluate, Problem
from hwloop.search.reward import Reward
from hwloop.search.trust import Trust

ANCHORED = DQNConfig(
    gamma=1.0,
    double=True,
    dueling=True,
    n_step=5,
    lower_bound=True,
    prior=True,
    target_every=64,
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Numbers of the anchored search.

    Attributes:
        dqn: the algorithm's switches.
        updates: gradient steps after each evaluation.
        proposals: candidates built and screened per evaluation.
        mutations: elites with a random change or two that are screened beside them.
    elites: best candidates that are partly decided anew.
        seed_share: largest share of the evaluations that seeds may take.
        greedy_share: how often the greedy episode is evaluated without screening.
        first_random, last_random: expected random decisions per episode, start and end. A fixed
            epsilon would leave hardly any long episode undisturbed.
        first_optimism, last_optimism: standard deviations that screening credits to a candidate.
        growth: the trust model is fitted anew when evaluations have grown by this factor.
    """

    dqn: DQNConfig = ANCHORED
    updates: int = 64
    proposals: int = 32
    mutations: int = 32
    elites: int = 5
    seed_share: float = 1 / 3
    greedy_share: float = 0.1
    first_random: float = 3.0
    last_random: float = 0.5
    first_optimism: float = 1.0
    last_optimism: float = 0.3
    growth: float = 1.1


DEFAULTS = Settings()

PLAN_SHARES = (1.0, 0.5, 1.5, 0.25, 0.75)
"""Plans are made for these multiples of the damage that is thought to fill the limit."""

IMPLAUSIBLE = 3.0
"""Uniform seeds beyond this multiple of the planned damage are not worth an evaluation."""


def search_dqn(
    problem: Problem,
    evaluate: Evaluate,
    *,
    evaluations: int,
    seed: int,
    reward: Reward,
    settings: Settings = DEFAULTS,
) -> None:
    """Search with the planner-anchored DQN; see :class:`hwloop.search.problem.Method`."""
    ledger = Ledger(problem, evaluate, evaluations=evaluations, reward=reward)
    try:
        _Anchored(ledger, reward, seed=seed, settings=settings).run()
    except BudgetSpent:
        return


class _Anchored:
    """One run of the anchored search."""

    def __init__(self, ledger: Ledger, reward: Reward, *, seed: int, settings: Settings) -> None:
        self.ledger = ledger
        self.problem = ledger.problem
        self.reward = reward
        self.settings = settings
        known = [len(ledger.scores)] if ledger.scores else []  # a later round draws anew
        self.rng = np.random.default_rng([seed, 2, *known])
        self.planner = Planner(self.problem)
        self.trust = Trust(self.problem, {})
        self.plans: list[Choices] = []
        self.env = NetCompressEnv(self.problem, reward=reward, prior=Prior(self.planner, reward))
        self.agent = DQN(self.env.observation_size, self.problem.action_count, settings.dqn, seed)

    def run(self) -> None:
        """Seeds, then one screened proposal after another, until BudgetSpent."""
        knows = bool(self.ledger.scores)
        if knows:
            self._refit()
        fresh = self.ledger.evaluations - len(self.ledger.scores)
        allowed = max(1, int(fresh * self.settings.seed_share))
        seeds = [choices for choices in self._seeds() if choices not in self.ledger.scores]
        for choices in seeds[:allowed]:
            self.ledger.evaluate(choices, "seed")
        self._refit()
        if knows:
            self._learn()
        while True:
            choices, source = self._next()
            self.ledger.evaluate(choices, source)
            self._record(choices)
            if len(self.ledger.scores) >= self.settings.growth * self.trust.count:
                self._refit()
            self._learn()

    # -------------------------------------------------------------------------------- seeds

    def _seeds(self) -> list[Choices]:
        """Distinct candidates that any search should know, the most promising first."""
        problem, drop = self.problem, self.problem.max_drop
        plans = [problem.dense]
        if self.plans:
            plans += self.plans
        else:
            plans += self._plans(None if drop is None else problem.allowance * drop)
        uniform = [problem.uniform(action) for action in range(problem.action_count)]
        plans += [choices for choices in uniform if self._plausible(choices)]
        return list(dict.fromkeys(plan for plan in plans if fits(problem, plan)))

    def _plans(self, limit: float | None) -> list[Choices]:
        """Answers of the planner to the goal, around the summed damage ``limit``."""
        problem, plans = self.problem, []
        if self.reward.kind == "linear":
            plans.append(self.planner.complete((), self.reward.lam / problem.baseline_ms))
        if limit is not None:
            plans += [self.planner.fastest_within(limit * share) for share in PLAN_SHARES]
        if problem.budget_ms is not None:
            plans += [self.planner.solve(problem.budget_ms * share) for share in (1.0, 0.97, 0.94)]
        return plans

    def _plausible(self, choices: Choices) -> bool:
        """Is the damage not far beyond what the limit on the drop could allow?"""
        limit = self.problem.max_drop
        if limit is None:
            return True
        allowed = IMPLAUSIBLE * self.problem.allowance * limit
        return self.problem.summed_damage(choices) <= allowed

    # ---------------------------------------------------------------------------- proposing

    def _next(self) -> tuple[Choices, str]:
        """The candidate to evaluate next, new, and where it comes from."""
        greedy = self._walk(None, random_steps=0.0)
        if greedy not in self.ledger.scores and self.rng.random() < self.settings.greedy_share:
            return greedy, "dqn-greedy"
        progress = self.ledger.progress
        random_steps = _between(self.settings.first_random, self.settings.last_random, progress)
        pool = dict.fromkeys(self.plans, "dqn-plan")
        pool[greedy] = "dqn-greedy"
        pool = {plan: label for plan, label in pool.items() if plan not in self.ledger.scores}
        for number in range(self.settings.proposals):
            elite = self._elite() if number % 2 else None
            choices = self._walk(elite, random_steps=random_steps)
            pool.setdefault(self._made_new(choices), "dqn")
        for _ in range(self.settings.mutations):
            choices = self._made_new(mutated(self.problem, self._elite() or greedy, self.rng))
            pool.setdefault(choices, "dqn-mutation")
        chosen = self._screened(list(pool), progress)
        return chosen, pool[chosen]

    def _walk(self, elite: Choices | None, *, random_steps: float) -> Choices:
        """One episode of the agent; with an elite, only a random part of it is decided anew."""
        count = self.problem.group_count
        if elite is None:
            again = np.ones(count, dtype=bool)
        else:
            again = self.rng.random(count) < _between(0.3, 0.1, self.ledger.progress)
            again[self.rng.integers(count)] = True
        epsilon = min(1.0, random_steps / int(again.sum()))
        observation, info = self.env.reset()
        for group in range(count):
            if elite is None or again[group]:
                action = self.agent.act(observation, info["action_mask"], info["prior"], epsilon)
            else:
                action = elite[group]
            observation, _, _, _, info = self.env.step(action)
        choices: Choices = info["candidate"]
        return choices

    def _elite(self) -> Choices | None:
        elites = self.ledger.elites(self.settings.elites)
        return elites[int(self.rng.integers(len(elites)))] if elites else None

    def _made_new(self, choices: Choices) -> Choices:
        """The nearest unseen candidate that random single changes find within the budget."""
        while choices in self.ledger.scores:
            self.ledger.miss()
            changed = mutated(self.problem, choices, self.rng)
            if fits(self.problem, changed) or not fits(self.problem, choices):
                choices = changed
        return choices

    def _screened(self, pool: list[Choices], progress: float) -> Choices:
        """The most promising of a pool; any of it where neither model nor table can rank."""
        if not self.trust.screens:
            return pool[int(self.rng.integers(len(pool)))]
        optimism = _between(self.settings.first_optimism, self.settings.last_optimism, progress)
        drops = self.trust.drops(pool, optimism=optimism)
        values = [
            self.reward.unclipped(
                float(drop), self.problem.latency_ms(choices), limits=self.problem
            )
            for choices, drop in zip(pool, drops, strict=True)
        ]
        return pool[int(np.argmax(values))]

    # ----------------------------------------------------------------------------- learning

    def _learn(self) -> None:
        if len(self.agent.replay):
            for _ in range(self.settings.updates):
                self.agent.learn()

    def _refit(self) -> None:
        """Fit the trust model to all scores; where it holds, plan and remember with it anew."""
        self.trust = Trust(self.problem, self.ledger.scores)
        if self.trust.trusted:
            self.planner = Planner(self.problem, self.trust.damage)
            limit = self.problem.max_drop
            self.env.prior = Prior(self.planner, self.reward, limit)
            self.plans = self._plans(limit)
        self.agent.replay.clear()
        for choices in self.ledger.scores:
            self._record(choices)

    def _record(self, choices: Choices) -> None:
        """Remember an evaluated candidate as an episode, at every budget it is a lesson for.

        A candidate of latency T is feasible at each budget from T on, and its drop bounds the
        best value there: one evaluation teaches all looser budgets.
        """
        score, budget_ms = self.ledger.scores[choices], self.problem.budget_ms
        budgets = [budget_ms]
        if budget_ms is not None:
            taken_ms = max(self.problem.latency_ms(choices), score.latency_ms or 0.0)
            stretches = (1.0, self.rng.uniform(1.0, 1.15), self.rng.uniform(1.0, 1.5))
            budgets += [taken_ms * stretch for stretch in stretches]
        for budget in budgets:
            for step in self.env.replay(choices, score, budget_ms=budget):
                self.agent.remember(
                    step.observation,
                    step.action,
                    step.reward,
                    step.following,
                    terminated=step.terminated,
                    next_mask=step.next_mask,
                    prior=step.prior,
                    next_prior=step.next_prior,
                )


def _between(first: float, last: float, progress: float) -> float:
    return first + (last - first) * progress
