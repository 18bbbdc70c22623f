"""A digest of user code changes with what it computes, and with nothing else."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tiny import environment

from hwloop import task
from hwloop.task import ClassificationTask
from hwloop.tasks import sources
from hwloop.tasks.calls import is_users
from hwloop.tasks.codetext import normalised
from hwloop.tasks.demo.task import DemoTask
from hwloop.tasks.images import ImageFolderTask
from hwloop.tasks.sources import code_digest

CODE = '''
import functools
import math
import helpers

WEIGHT = 2.0
TABLE = {"a": 1, "b": [1, 2]}

def inner(x):
    return x * WEIGHT

@functools.cache
def kept(x):
    return math.floor(x)

class Metric:
    factor = 3

    def __init__(self, power):
        self.power = power

    def help(self, x):
        return x ** self.power

    def __call__(self, x):
        return self.help(inner(x)) * self.factor + kept(x) + TABLE["a"] + helpers.shift(x)

def score(x):
    """What it is worth."""
    return Metric(2)(x)

def made(bound):
    def bounded(x, least=0.5):
        return max(x, least, bound)
    return bounded
'''
HELPERS = "def shift(x):\n    return x + 1\n"

Digest = Callable[..., str]


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Digest]:
    """The digest of ``score`` with the sources changed by (before, after)."""
    monkeypatch.syspath_prepend(tmp_path)
    number = iter(range(100))

    def of(
        before: str = "", after: str = "", *, take: str = "score", helpers: str = HELPERS
    ) -> str:
        assert before in CODE
        sys.modules.pop("helpers", None)
        (tmp_path / "helpers.py").write_text(helpers)
        importlib.invalidate_caches()
        path = tmp_path / f"code{next(number)}.py"
        path.write_text(CODE.replace(before, after) if before else CODE)
        module = load(path)
        found = getattr(module, take)
        return code_digest(found(1.5) if take == "made" else found)

    yield of
    sys.modules.pop("helpers", None)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""What it is worth."""', '"""Said otherwise."""'),
        ("    return x * WEIGHT", "    # twice\n    return (x   *   WEIGHT)"),
    ],
)
def test_comments_layout_and_docstrings_do_not_count(
    digest: Digest, before: str, after: str
) -> None:
    assert digest(before, after) == digest()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x * WEIGHT", "x / WEIGHT"),
        ("WEIGHT = 2.0", "WEIGHT = 2.5"),
        ("math.floor", "math.ceil"),
        ("factor = 3", "factor = 4"),
        ("x ** self.power", "x + self.power"),
        ("Metric(2)", "Metric(3)"),
        ('"a": 1', '"a": 2'),
    ],
)
def test_what_a_function_reaches_counts(digest: Digest, before: str, after: str) -> None:
    assert digest(before, after) != digest()


def test_a_module_of_the_users_counts(digest: Digest) -> None:
    assert digest(helpers=HELPERS.replace("+ 1", "+ 2")) != digest()


def test_defaults_and_closures_count(digest: Digest) -> None:
    assert digest(take="made") != digest("least=0.5", "least=0.6", take="made")

    def make(bound: float) -> Callable[[float], float]:
        return lambda x: max(x, bound)

    assert code_digest(make(1.0)) == code_digest(make(1.0))
    assert code_digest(make(1.0)) != code_digest(make(2.0))


def test_partial_functions_and_the_state_of_callables_count() -> None:
    assert code_digest(functools.partial(max, 1)) != code_digest(functools.partial(max, 2))

    class Scale:
        def __init__(self, mean: object) -> None:
            self.mean = mean

        def __call__(self, x: float) -> float:
            return x

    for one, other in ((1.0, 2.0), (np.ones(3), np.zeros(3)), (torch.ones(3), torch.zeros(3))):
        assert code_digest(Scale(one)) == code_digest(Scale(one))
        assert code_digest(Scale(one)) != code_digest(Scale(other))


def test_what_refers_to_itself_ends() -> None:
    ring: list[object] = [1]
    ring.append(ring)
    assert code_digest(ring) == code_digest(ring)
    deep: list[object] = []
    for _ in range(10_000):
        deep = [deep]
    assert code_digest(deep)


def test_code_without_a_file_is_known_by_what_it_was_compiled_to() -> None:
    def typed(source: str) -> Callable[..., object]:
        space: dict[str, Callable[..., object]] = {}
        exec(compile(source, "<stdin>", "exec"), space)  # noqa: S102 - what a prompt does
        return space["f"]

    assert code_digest(typed("def f(x): return x + 1")) == code_digest(
        typed("def f(x): return x + 1")
    )
    assert code_digest(typed("def f(x): return x + 1")) != code_digest(
        typed("def f(x): return x + 2")
    )


def decorated(body: str) -> Callable[..., object]:
    """A method under a package's decorator, as users write it."""
    space: dict[str, object] = {"torch": torch}
    exec(compile(f"@torch.no_grad()\ndef f(x):\n    {body}\n", "<stdin>", "exec"), space)  # noqa: S102
    found = space["f"]
    assert callable(found)
    return found


def test_what_a_packages_decorator_wraps_counts() -> None:
    assert code_digest(decorated("return x + 1")) == code_digest(decorated("return x + 1"))
    assert code_digest(decorated("return x + 1")) != code_digest(decorated("return x + 2"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.relu, torch.tanh),
        (np.exp, np.sin),
        (np.float32(1), np.float32(2)),
        (torch.float32, torch.int8),
        (range(3), range(4)),
        ({"a", "b"}, {"a", "c"}),
        (torch.eye(3).to_sparse(), (2 * torch.eye(3)).to_sparse()),
    ],
)
def test_values_and_built_in_functions_count(one: object, other: object) -> None:
    assert code_digest(one) == code_digest(one)
    assert code_digest(one) != code_digest(other)


def test_what_belongs_to_the_process_does_not_count() -> None:
    log = logging.getLogger("hwloop.tests.sources")
    before = code_digest(log, os.environ, sys.stdout)
    log.debug("something")
    logging.getLogger("hwloop.tests.sources.other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOMETHING_ELSE", "1")
        assert code_digest(log, os.environ, sys.stdout) == before


def test_attributes_that_inherited_code_reads_count() -> None:
    class Cold(ClassificationTask):
        temperature = 1.0

    class Warm(ClassificationTask):
        temperature = 5.0

    cold, warm = Cold(), Warm()
    assert code_digest(cold.distillation_loss, owner=cold) != code_digest(
        warm.distillation_loss, owner=warm
    )


def test_a_set_in_code_counts_the_same_in_every_process() -> None:
    code = "def f(x): return x in {'alpha', 'beta', 'gamma', 'delta'}"
    script = f"""
import sys
from hwloop.tasks.sources import code_digest
space = {{}}
exec(compile({code!r}, "<stdin>", "exec"), space)
print(code_digest(space["f"], {{"alpha", "beta", "gamma"}}))
"""
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=environment(PYTHONHASHSEED=seed),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (task.Task, "hwloop.task.Task"),
        (task.ClassificationTask, "hwloop.task.ClassificationTask"),
        (task.TensorSplit, "hwloop.splits.TensorSplit"),
        (task.FolderSplit, "hwloop.splits.FolderSplit"),
        (DemoTask, "hwloop.demo.task.DemoTask"),
        (ImageFolderTask, "hwloop.tasks.images.ImageFolderTask"),
    ],
)
def test_a_base_of_ours_keeps_the_name_under_which_runs_were_stored(kind: type, name: str) -> None:
    assert f"{sources._stored_name(kind.__module__)}.{kind.__qualname__}" == name


def test_packages_are_not_followed() -> None:
    assert not is_users(str(torch.__file__), typed=True)
    assert not is_users(functools.__file__, typed=True)
    assert is_users("<stdin>", typed=True)
    assert not is_users("<stdin>")
    assert not is_users("<frozen importlib._bootstrap>", typed=True)
    assert code_digest(torch.nn.functional.cross_entropy)


def test_a_body_that_is_only_a_docstring_stays_valid() -> None:
    assert normalised('def f():\n    """text"""\n') == "def f():\n    pass"
