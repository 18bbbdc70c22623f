"""hwloop in a Python without its packages: a real environment that has click, and little else."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest

import hwloop
from hwloop.measure.doctor.facts import NEEDED

CHECKOUT = Path(hwloop.__file__).parents[1]
Done = subprocess.CompletedProcess[str]


class Bare:
    """An environment of its own that has some of this one's distributions, by links."""

    def __init__(self, folder: Path, *names: str) -> None:
        venv.create(folder, with_pip=False)
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        self._python = folder / "bin" / "python"
        for name in names:
            distribution = metadata.distribution(name)
            for top in {
                file.parts[0] for file in distribution.files or () if file.parts[0] != ".."
            }:
                place = folder / "lib" / version / "site-packages" / top
                place.symlink_to(Path(str(distribution.locate_file(top))))

    def __call__(self, *words: str) -> Done:
        return subprocess.run(
            [str(self._python), "-m", "hwloop", *words],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(CHECKOUT), "PATH": "/usr/bin:/bin"},
            timeout=60,
            check=False,
        )


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Bare:
    return Bare(tmp_path_factory.mktemp("bare") / "env", "click")


@pytest.fixture(scope="module", params=[("click",), ("click", "numpy")], ids="+".join)
def lacking(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bare:
    return Bare(tmp_path_factory.mktemp("lacking") / "env", *request.param)


def lines(done: Done) -> dict[str, dict[str, str | None]]:
    assert "Traceback" not in done.stderr, done.stderr
    return {item["what"]: item for item in json.loads(done.stdout)}


def test_the_doctor_names_each_package_that_is_missing_with_its_command(lacking: Bare) -> None:
    done = lacking("doctor", "--json")
    assert done.returncode == hwloop.ExitCode.ENVIRONMENT
    found = lines(done)
    for name in set(NEEDED) - {"click", "numpy"}:
        line = found[f"{name} is not installed"]
        assert line["state"] == "fail"
        assert line["fix"] == f'python -m pip install "{name}>={NEEDED[name]}"'
    assert found[next(what for what in found if what.startswith("click "))]["state"] == "ok"


def test_a_target_cannot_be_looked_at_and_the_line_says_what_for(lacking: Bare) -> None:
    done = lacking("doctor", "--target", "cpu", "--json")
    assert done.returncode == hwloop.ExitCode.ENVIRONMENT
    found = lines(done)
    what = next(what for what in found if what.startswith("target 'cpu' cannot be looked at"))
    assert "execnet" in what
    assert f'"execnet>={NEEDED["execnet"]}"' in str(found[what]["fix"])
    assert "torch is not installed" in found


def test_another_command_names_what_it_lacks_and_sends_to_the_doctor(bare: Bare) -> None:
    for words in (("bench", "a.onnx"), ("optimize",), ("target", "check")):
        done = bare(*words)
        assert done.returncode == hwloop.ExitCode.ENVIRONMENT
        assert "is not installed\n  fix: hwloop doctor" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [(), ("optimize",), ("bench",), ("doctor",), ("target", "list")])
def test_help_needs_click_alone(bare: Bare, words: tuple[str, ...]) -> None:
    done = bare(*words, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Examples:" in done.stdout
