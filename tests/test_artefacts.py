"""What ``best/`` holds, and for which device its engine is valid."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from tiny import TinyTask

from hwloop.compress.subject import Built, Subject, subject
from hwloop.findings import Fingerprint
from hwloop.measure.answers import Engine
from hwloop.measure.profile import rules_for
from hwloop.measure.profile_file import load_profile
from hwloop.measure.session import DeviceSession
from hwloop.records import Goal
from hwloop.run import best
from hwloop.run.settings import Settings

ORIN = Fingerprint(device="Orin", runtime="tensorrt", runtime_version="10.3.0")
SETTINGS = Settings(
    model=None, task="tests/tiny.py:TinyTask", data=None, target="x", goal=Goal(max_drop=0.01)
)
PLAN = b"a plan"
ENGINE = Engine(data=PLAN, sha256=hashlib.sha256(PLAN).hexdigest(), audit={"layers": 7})


@pytest.fixture(scope="module")
def found() -> Subject:
    task = TinyTask()
    profile = load_profile("fake")
    with DeviceSession(profile) as session:
        return subject(
            task, task.model().eval(), rules_for(profile, session.isa), isa=session.isa, name="tiny"
        )


def contents(found: Subject, engine: Engine | None) -> dict[str, bytes]:
    dense = found.dense_candidate
    built = Built(candidate=dense, module=found.dense, model=found.model(dense, found.graph))
    return best.files(
        SETTINGS, found, built, note={"stage": "final"}, fingerprint=ORIN, engine=engine
    )


def test_an_engine_ships_with_its_audit_and_the_device_it_is_valid_for(found: Subject) -> None:
    files = contents(found, ENGINE)
    assert files["model.engine"] == PLAN
    about = json.loads(files["engine.json"])
    assert about["sha256"] == ENGINE.sha256
    assert about["audit"] == {"layers": 7}
    assert about["valid_for"]["device"] == "Orin"
    assert about["valid_for"]["runtime_version"] == "10.3.0"


def test_without_an_engine_there_is_no_file_of_it(found: Subject) -> None:
    assert set(contents(found, None)) == {"model.onnx", "model.safetensors", "candidate.json"}


def test_the_folder_is_named_for_its_contents(found: Subject) -> None:
    plain, with_engine = contents(found, None), contents(found, ENGINE)
    assert best.name(plain) == best.name(contents(found, None))
    assert best.name(plain) != best.name(with_engine)


def test_the_weights_are_the_networks(found: Subject, tmp_path: Path) -> None:
    from safetensors.torch import load

    state = load(contents(found, None)["model.safetensors"])
    for name, value in found.dense.state_dict().items():
        assert torch.equal(state[name], value)
