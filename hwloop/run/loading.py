"""``hwloop.load``: a run's best network as a module, without believing what the folder says.

The folder holds a candidate, weights and the names of the code that made the dense network. The
first two are data and are checked; the names are followed only for a caller who says so.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from hwloop.compress import methods
from hwloop.compress.apply import compress
from hwloop.compress.rules import SpaceRules
from hwloop.compress.sizes import INPUT, described, resizes
from hwloop.compress.space import PRECISIONS, menu
from hwloop.compress.subject import dense_graph
from hwloop.errors import CandidateError, UsageError
from hwloop.files import read_file, read_json, sha256
from hwloop.parsing import a_list, a_text, an_int, optional
from hwloop.records import Candidate
from hwloop.run import config
from hwloop.run.folder import RunFolder
from hwloop.task import Task, load_model
from hwloop.tasks.calls import shown
from hwloop.tasks.load import as_task, load_task
from hwloop.tasks.spec import relocated

BUNDLED = "demo"
"""The one task that needs neither code nor data nor a download beyond hwloop itself."""

MAX_WEIGHTS_BYTES = 8 << 30
MAX_INPUT_VALUES, MAX_TRUSTED_VALUES = 1 << 24, 1 << 28
"""Of an input that a folder asks for: the dense network is run on it once."""

LARGEST_ALIGN = 1024
HINT = "restore it from a copy, or repeat the run"
WAYS = "hwloop.load(RUN, model=net) with the dense network, task=MyTask(), or trust=True"


def load(folder: RunFolder, *, model: Any, task: Any, trust: bool) -> nn.Module:
    """See :func:`hwloop.api.load`."""
    if not isinstance(trust, bool):  # "no" would be true
        raise UsageError(f"trust={shown(trust)} is neither True nor False", WAYS)
    folder.check_readable()
    best = folder.best_folder()
    if best is None:
        raise UsageError(f"there is no network in {folder.path} yet", "name the folder of a run")
    path = best / "candidate.json"
    note = read_json(path, what="the note of a candidate", hint=HINT)
    if not isinstance(note, dict):
        raise _damaged(path, "it is no object")
    try:
        candidate = Candidate.from_json(note.get("candidate"))
        align = an_int(1, LARGEST_ALIGN)(note.get("align"))
        kinds = _kinds(note.get("groups"))
        rules = SpaceRules(align=align, kinds=kinds, precisions=PRECISIONS)
        shape = a_list(an_int(1), 2, 6)(note.get("input_shape"))
        named = [optional(a_text(4096))(note.get(name)) for name in ("model", "task", "data")]
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if shape[0] != 1 or not set(candidate.actions) <= set(menu(rules)):
        raise _damaged(path, "its values are impossible")
    if math.prod(shape) > (MAX_TRUSTED_VALUES if trust else MAX_INPUT_VALUES):
        raise UsageError(f"{path} asks for an input of {shape}", "if that is right: trust=True")
    state = _weights(best / "model.safetensors", note.get("safetensors_sha256"))
    dense = _dense(folder, named, model=model, task=task, trust=trust)
    example = torch.zeros(shape)
    return _with_weights(
        dense, example, candidate=candidate, rules=rules, state=state, path=path
    ).eval()


def _kinds(groups: Any) -> tuple[str, ...]:
    """Of all methods, without those that need a group of the input where a run had none."""
    sized = isinstance(groups, list) and groups[:1] == [INPUT]
    return tuple(method.kind for method in methods.METHODS if sized or not resizes(method))


def _dense(
    folder: RunFolder, named: list[str | None], *, model: Any, task: Any, trust: bool
) -> nn.Module:
    """The dense network: the caller's, the demo's, or with trust the one that the run names."""
    if task is not None:
        plugin = load_task(task) if isinstance(task, str) else as_task(task)
        return load_model(plugin, model)
    if model is not None:
        return load_model(Task(), model)
    spec, task_name, data = named
    code = ", ".join(name for name in (spec, task_name) if name)
    if not trust and (spec is not None or task_name != BUNDLED):
        raise UsageError(
            f"{folder.path} names code of its own ({code}), which is not run unasked", WAYS
        )
    if config.OBJECT in code:
        raise UsageError(f"{folder.path} was made of objects in Python: {code}", WAYS)

    def moved(path: str) -> str:
        return config.absolute(path, folder.path)

    plugin = load_task(
        relocated(task_name or BUNDLED, moved), data=None if data is None else Path(moved(data))
    )
    return load_model(plugin, None if spec is None else relocated(spec, moved))


def _weights(path: Path, sha: Any) -> dict[str, Tensor]:
    data = read_file(path, what="a network's weights", limit_bytes=MAX_WEIGHTS_BYTES, hint=HINT)
    if sha256(data) != sha:
        raise UsageError(f"{path} was altered", HINT)
    try:
        return load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _damaged(path, str(error)) from error


def _with_weights(
    dense: nn.Module,
    example: Tensor,
    *,
    candidate: Candidate,
    rules: SpaceRules,
    state: dict[str, Tensor],
    path: Path,
) -> nn.Module:
    ours = "give the dense network that the run began with"
    try:
        graph = dense_graph(dense, example, name="the dense network")
        network = described(dense, example, graph, name="the dense network", rules=rules)
    except UsageError as error:
        shape = "x".join(map(str, example.shape))
        raise UsageError(f"{error.message} (for the run's input of {shape})", ours) from error
    if len(candidate.actions) != len(network.groups):
        raise UsageError(
            f"{path} decides {len(candidate.actions)} groups, the network has "
            f"{len(network.groups)}: they do not belong together",
            ours,
        )
    try:
        module = compress(dense, example, network, candidate=candidate, rules=rules)
        for name, value in module.state_dict().items():
            if name in state and state[name].dtype != value.dtype:
                raise RuntimeError(f"{name} is {state[name].dtype}, not {value.dtype}")
        module.load_state_dict(state)
    except (RuntimeError, CandidateError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(
            f"the weights in {path.parent} do not fit the network: {first}",
            ours,
        ) from error
    return module


def _damaged(path: Path, how: str) -> UsageError:
    return UsageError(f"{path} is damaged: {how}", HINT)
