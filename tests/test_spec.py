"""SPECs reach the user's code, and every mistake in it is explained with the user's own line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwloop.errors import TargetError, UsageError
from hwloop.tasks.calls import call_user
from hwloop.tasks.spec import load_object, parse_spec

USER_FILE = """\
import math

from helper import SCALE

class Box:
    class Inner:
        def make(size=1):
            return size * SCALE

def build(size, *, name="a:b.py:c"):
    return size, name

def broken():
    return 1 / 0

LIMIT = 3
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "helper.py").write_text("SCALE = 10\n")
    path = tmp_path / "user.py"
    path.write_text(USER_FILE)
    yield path
    sys.modules.pop("helper", None)


def refused(spec: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_object(spec, what="the model")
    return caught.value


class TestWhatASpecNames:
    def test_attribute_of_an_installed_module(self) -> None:
        assert load_object("os.path:join", what="the model")("a", "b") == "a/b"

    def test_attribute_of_a_file_that_imports_its_neighbour(self, user_file: Path) -> None:
        assert load_object(f"{user_file}:LIMIT", what="the model") == 3

    def test_dotted_attribute_called_with_literals(self, user_file: Path) -> None:
        assert load_object(f"{user_file}:Box.Inner.make(4)", what="the model") == 40

    def test_literals_may_hold_colons_and_file_names(self, user_file: Path) -> None:
        built = load_object(f"{user_file}:build([1, -2], name='x:y.py:z')", what="the model")
        assert built == ([1, -2], "x:y.py:z")

    def test_module_in_the_current_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "spec_neighbour.py").write_text("VALUE = 7\n")
        monkeypatch.chdir(tmp_path)
        assert load_object("spec_neighbour:VALUE", what="the model") == 7

    def test_file_in_a_folder_with_parentheses(self, tmp_path: Path) -> None:
        folder = tmp_path / "a (b)"
        folder.mkdir()
        (folder / "net.py").write_text("VALUE = 7\n")
        assert load_object(f"{folder}/net.py:VALUE", what="the model") == 7

    def test_two_specs_into_one_file_share_its_classes(self, user_file: Path) -> None:
        first = load_object(f"{user_file}:Box", what="the model")
        assert load_object(f"{user_file}:Box", what="the task") is first

    def test_an_edited_file_is_loaded_anew(
        self, user_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also one that was edited within a second, where bytecode is written."""
        monkeypatch.setattr(sys, "dont_write_bytecode", False)
        before = user_file.stat()
        load_object(f"{user_file}:LIMIT", what="the model")
        user_file.write_text(USER_FILE.replace("LIMIT = 3", "LIMIT = 4"))
        os.utime(user_file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert load_object(f"{user_file}:LIMIT", what="the model") == 4

    def test_drive_letter_belongs_to_the_path(self) -> None:
        assert parse_spec(r"C:\nets\my.py:Net", what="the model").where == r"C:\nets\my.py"

    def test_import_path_is_left_as_it_was(self, user_file: Path) -> None:
        before = list(sys.path)
        load_object(f"{user_file}:LIMIT", what="the model")
        assert sys.path == before


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        "spec",
        [
            "",
            "resnet18",
            "os.path:",
            ":join",
            "os.path:join(",
            "os.path:join(x)",
            "os.path:join(__import__('os').system('true'))",
            "os.path:join(**{'a': 1})",
            "os.path:join(*[1])",
            "os.path:[1]",
            "os.path:join()()",
            "os.path:join(a=1, a=2)",
        ],
    )
    def test_malformed_spec_shows_the_forms(self, spec: str) -> None:
        assert "package.module:attr" in refused(spec).hint

    def test_missing_file_names_a_neighbour(self, user_file: Path) -> None:
        error = refused(f"{user_file.parent}/usr.py:LIMIT")
        assert "there is no file" in str(error)
        assert "user.py" in error.hint

    def test_misspelled_module_names_the_closest(self) -> None:
        error = refused("torchvison.models:resnet18")
        assert "torchvison" in str(error)
        assert "'torchvision'" in error.hint

    def test_misspelled_submodule_names_the_closest(self) -> None:
        error = refused("json.decodr:JSONDecoder")
        assert "no module 'decodr' in json" in str(error)
        assert "'decoder'" in error.hint

    @pytest.mark.parametrize("spec", ["math.x:y", "...:y", "zzqqxx:y"])
    def test_module_that_resembles_nothing(self, spec: str) -> None:
        error = refused(spec)
        assert "no module" in str(error)
        assert len(error.hint) < 300

    def test_misspelled_attribute_names_the_closest(self, user_file: Path) -> None:
        assert "did you mean 'build'?" in refused(f"{user_file}:buidl").hint
        assert "did you mean 'Inner'?" in refused(f"{user_file}:Box.Iner").hint

    def test_arguments_that_do_not_fit_show_the_signature(self, user_file: Path) -> None:
        error = refused(f"{user_file}:build(sise=3)")
        assert "size" in str(error)
        assert "build(size, *" in error.hint

    def test_calling_what_is_no_function(self, user_file: Path) -> None:
        assert "cannot be called" in str(refused(f"{user_file}:LIMIT()"))

    def test_raising_call_names_the_line(self, user_file: Path) -> None:
        error = refused(f"{user_file}:broken()")
        assert "ZeroDivisionError" in str(error)
        assert f"{user_file}:14" in str(error)

    @pytest.mark.parametrize(
        ("code", "expected"),
        [
            ("x = 1\ny = undefined\n", "NameError"),
            ("x = 1\nif x\n", "SyntaxError"),
            ("x = 1\nimport no_such_package\n", "no_such_package"),
            ("import sys\nsys.exit(1)\n", "ended the program"),
        ],
    )
    def test_file_that_cannot_be_loaded_names_the_line(
        self, tmp_path: Path, code: str, expected: str
    ) -> None:
        path = tmp_path / "bad.py"
        path.write_text(code)
        error = refused(f"{path}:x")
        assert expected in str(error)
        assert f"{path}:2" in str(error)
        assert not [name for name in sys.modules if name.startswith("hwloop_user_bad_")]


class TestCallUser:
    def test_result_and_arguments_pass_through(self) -> None:
        assert call_user(divmod, 7, 2, what="a test") == (3, 1)

    def test_line_is_the_users_even_when_a_library_raises(self) -> None:
        def reads_json() -> None:
            __import__("json").loads("{")

        with pytest.raises(UsageError, match=r"metric\(\) raised JSONDecodeError") as caught:
            call_user(reads_json, what="metric()")
        line = reads_json.__code__.co_firstlineno + 1
        assert f"{__file__}:{line}" in str(caught.value)

    def test_function_called_with_wrong_arguments_is_located(self) -> None:
        def metric(outputs: object) -> None: ...

        with pytest.raises(UsageError) as caught:
            call_user(metric, 1, 2, what="metric()")
        assert f"{__file__}:{metric.__code__.co_firstlineno}" in str(caught.value)

    def test_errors_of_hwloop_pass_unchanged(self) -> None:
        def unreachable() -> None:
            raise TargetError("the board is off", "switch it on")

        with pytest.raises(TargetError, match="the board is off"):
            call_user(unreachable, what="a test")

    def test_interrupt_is_not_a_mistake_of_the_user(self) -> None:
        def interrupted() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            call_user(interrupted, what="a test")


def test_names_of_the_tasks_do_not_wait_for_torch() -> None:
    code = "import sys, hwloop.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
