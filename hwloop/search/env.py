"""Compression as a Gymnasium environment: one decision per group, one reward at the end."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from hwloop.search.observation import Observation, Standing, Transition, View
from hwloop.search.prior import Prior
from hwloop.search.problem import Choices, Evaluate, Problem, Score
from hwloop.search.reward import Reward

ENV_ID = "hwloop/NetCompress-v0"


def register() -> None:
    """Make ``gymnasium.make("hwloop/NetCompress-v0", problem=..., evaluate=...)`` work."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(id=ENV_ID, entry_point="hwloop.search.env:NetCompressEnv")


class NetCompressEnv(gymnasium.Env[Observation, np.int64]):
    """Chooses an action for every group in forward order, then evaluates the candidate.

    Observation: Box(-1, 1, float32). Latencies are predictions for the groups decided so far plus
    a completion of the rest; "unit" means mapped linearly from [0, 2] to [-1, 1] and clipped.

    ======================  ==========================================================
    entries                 meaning
    ======================  ==========================================================
    F                       static features of the group that is decided
    1                       share of the groups that are decided: -1 none, 1 all
    1                       latency, rest dense, over the baseline; unit
    1                       latency, rest fastest, over the baseline; unit
    1                       latency, rest dense, over the budget; unit
    1                       latency, rest fastest, over the budget; unit
    1                       slack: (budget - latency with rest fastest) / baseline
    1                       summed damage so far over the damage scale; unit
    1                       best prior value, divided by 3; 0 without a prior
    K                       features of the previous action; 0 at the start
    A                       menu: saving against keep, over the largest of any group
    A                       menu: damage over the damage scale; unit
    A                       menu: 1 legal, -1 illegal
    ======================  ==========================================================

    Without a budget the baseline stands for it. The damage scale is the summed damage that plans
    may reach (``allowance * max_drop``), or ``drop_scale`` without a limit on the drop. After the
    last group the observation shows the finished candidate and an empty menu.

    The action wall (AMC, He et al. 2018, section 3.2): an action is legal if the group's mask
    allows it and the prediction with it and the fastest rest stays within the budget. An illegal
    action is replaced by the fastest legal one; ``info["executed"]`` is what ran.

    ``info`` has ``action_mask`` (A bools, at least one True), ``prior`` (A floats in units of
    reward, or None) and after a step ``executed``; with the last step also ``candidate`` (the
    choices), ``score`` and ``reward``. Only the last step is rewarded.

    Args:
        problem: what is known beforehand.
        evaluate: scores a finished candidate; None where episodes only propose one: they are not
            rewarded, and :meth:`replay` is given the score.
        reward: what a score is worth.
        prior: expected rewards for the observation and ``info``; None = none are given.
        source: label handed to ``evaluate``.
    """

    _prefix: Choices
    _mask: list[bool]
    _menu_ms: list[float]
    _values: list[float] | None

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - the type of gymnasium.Env

    def __init__(
        self,
        problem: Problem,
        evaluate: Evaluate | None = None,
        *,
        reward: Reward | None = None,
        prior: Prior | None = None,
        source: str = "env",
    ) -> None:
        self.problem = problem
        self.evaluate = evaluate
        self.reward_of = reward if reward is not None else Reward()
        self.prior = prior
        self.source = source
        self.action_space = gymnasium.spaces.Discrete(problem.action_count)
        self._view = View(problem)
        self.observation_size = self._view.size
        shape = (self.observation_size,)
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, shape, np.float32)
        self._fast_rest = [problem.fastest_choices[g:] for g in range(problem.group_count + 1)]
        self._dense_rest = [problem.dense[g:] for g in range(problem.group_count + 1)]
        self._start(problem.budget_ms)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start with an empty prefix; ``options={"budget_ms": x}`` sets this episode's budget."""
        super().reset(seed=seed)
        self._start((options or {}).get("budget_ms", self.problem.budget_ms))
        return self._observation(), self._info()

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Decide one group; see the class for what is returned.

        Raises:
            RuntimeError: the episode is over.
            BudgetSpent: raised by ``evaluate``.
        """
        info = self._decide(int(action))
        value, done = 0.0, len(self._prefix) == self.problem.group_count
        if done:
            info.update(candidate=self._prefix)
            if self.evaluate is not None:
                score = self.evaluate(self._prefix, self.source)
                value = self.reward_of(score, self._limits)
                info.update(score=score, reward=value)
        return self._observation(), value, done, False, info

    def replay(
        self, choices: Choices, score: Score, *, budget_ms: float | None
    ) -> list[Transition]:
        """The episode of a candidate that was evaluated before, as it is at a budget.

        Returns:
            Its transitions; none where the wall of this budget does not let the candidate pass.
        """
        observation, info = self.reset(options={"budget_ms": budget_ms})
        episode = []
        for action in choices:
            prior = 0.0 if info["prior"] is None else float(info["prior"][action])
            info = self._decide(action)
            if info["executed"] != action:
                return []
            following, done = self._observation(), len(self._prefix) == len(choices)
            transition = Transition(
                observation=observation,
                action=action,
                reward=self.reward_of(score, self._limits) if done else 0.0,
                following=following,
                terminated=done,
                prior=prior,
                next_mask=info["action_mask"],
                next_prior=info["prior"],
            )
            episode.append(transition)
            observation = following
        return episode

    # --------------------------------------------------------------------------- internals

    def _start(self, budget_ms: float | None) -> None:
        self._prefix = ()
        self._budget_ms = budget_ms
        self._limits = self.problem.limits(budget_ms)
        self._damage_so_far = 0.0
        self._prior_damage = 0.0
        self._fast_ms = self.problem.min_ms
        self._look_ahead()

    def _decide(self, action: int) -> dict[str, Any]:
        """Take an action, or what the wall leaves of it, for the next group."""
        group = len(self._prefix)
        if group == self.problem.group_count:
            raise RuntimeError("the episode is over: call reset()")
        if not self._mask[action]:
            legal = [index for index, ok in enumerate(self._mask) if ok]
            action = min(legal, key=self._menu_ms.__getitem__)
        self._prefix = (*self._prefix, action)
        self._damage_so_far += self._view.damage[group][action]
        if self.prior is not None:
            self._prior_damage += float(self.prior.planner.damage[group, action])
        self._fast_ms = self._menu_ms[action]
        self._look_ahead()
        return {**self._info(), "executed": action}

    def _look_ahead(self) -> None:
        """Predict the menu of the group that is decided next: one prediction per legal action."""
        problem, group = self.problem, len(self._prefix)
        self._dense_ms = problem.latency_ms(self._prefix + self._dense_rest[group])
        self._mask = [False] * problem.action_count
        self._menu_ms = [self._fast_ms] * problem.action_count
        self._values = None
        if group == problem.group_count:
            return
        rest = self._fast_rest[group + 1]
        for action in problem.menus[group]:
            self._menu_ms[action] = problem.latency_ms((*self._prefix, action, *rest))
        limit = np.inf if self._budget_ms is None else self._budget_ms
        for action in problem.menus[group]:
            self._mask[action] = self._menu_ms[action] <= limit
        if not any(self._mask):  # no completion meets the budget: go as near as possible
            self._mask[min(problem.menus[group], key=self._menu_ms.__getitem__)] = True
        if self.prior is not None:
            damage = self.prior.planner.damage[group] + self._prior_damage
            fast_ms = np.array(self._menu_ms)
            self._values = self.prior.values(group, damage, fast_ms, budget_ms=self._budget_ms)

    def _info(self) -> dict[str, Any]:
        mask = self._mask if any(self._mask) else [True] * len(self._mask)
        prior = None if self._values is None else np.array(self._values)
        return {"action_mask": np.array(mask), "prior": prior}

    def _observation(self) -> Observation:
        best = 0.0
        if self._values is not None:
            best = max(v for v, ok in zip(self._values, self._mask, strict=True) if ok) / 3
        return self._view(
            Standing(
                prefix=self._prefix,
                budget_ms=self._budget_ms,
                dense_ms=self._dense_ms,
                fast_ms=self._fast_ms,
                damage=self._damage_so_far,
                best=best,
                menu_ms=self._menu_ms,
                mask=self._mask,
            )
        )
