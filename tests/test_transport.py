"""Where ssh says what went wrong: read by us, apart from the board, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hwloop.measure import transport

WRITES = "import sys; open(sys.argv[1], 'a').write('refused')"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("nameless", [True, False])
def test_what_another_program_writes_is_read(
    nameless: bool, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where files of this process cannot be opened by others, and a name is needed."""
    if not nameless:
        monkeypatch.setattr(transport, "_opens_to_others", lambda own: False)
    elif sys.platform != "linux":
        pytest.skip("memory as a file is there on Linux only")
    with transport.ssh_log() as log:
        assert log.read_text() == ""
        subprocess.run([sys.executable, "-c", WRITES, str(log)], check=True, timeout=30)
        assert log.read_text() == "refused"
        assert bool(list(temporary.iterdir())) is not nameless
    assert not log.exists()
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="memory as a file is there on Linux only")
def test_a_killed_process_leaves_no_file(temporary: Path) -> None:
    script = (
        "import os, signal\n"
        "from hwloop.measure import transport\n"
        "with transport.ssh_log():\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": paths},
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert list(temporary.iterdir()) == []
