"""Target profiles: shipped ones load, wrong ones say which key."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwloop.errors import UsageError
from hwloop.profile import known_profiles, load_profile, recipe_for, rules_for

HEAD = 'description = "d"\nruntime = "onnxruntime"\n'


@pytest.mark.parametrize("name", sorted(known_profiles()))
def test_every_shipped_profile_loads(name: str) -> None:
    assert load_profile(name).description


def test_an_unknown_name_gets_the_closest() -> None:
    with pytest.raises(UsageError, match="did you mean 'cpu'"):
        load_profile("cpuu")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('runtime = "onnxruntime"', "description is missing"),
        ('description = "d"\nruntime = "onnxrun"', "runtime is 'onnxrun'.*onnxruntime"),
        (HEAD + "[settings]\nthreads = 0", "threads must be from 1"),
        (HEAD + '[settings]\nthreads = "two"', "settings.threads has the wrong type"),
        (HEAD + "[settings]\nthread = 2", "unknown key 'settings.thread'.*threads"),
        (HEAD + "[space]\nalign = -8", "space.align"),
        (HEAD + '[space]\nprecisions = ["fp8"]', "space.precisions is 'fp8'"),
        (HEAD + "[protocol.row]\nrounds = 0", "protocol.row.rounds must be above zero"),
        (HEAD + "[protocol.raw]\nrounds = 1", "unknown key 'protocol.raw'.*row"),
        ("description = ", "cannot read profile"),
    ],
)
def test_a_wrong_value_names_the_file_and_the_key(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        load_profile(str(path))
    assert str(path) in str(caught.value)


def test_a_profile_may_change_the_protocol(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + "[protocol.final]\ntime_limit_s = 3.5\n[timeouts]\ncall_s = 7")
    found = load_profile(str(path))
    assert found.protocols.final.time_limit_s == 3.5
    assert found.protocols.row.rounds == 2
    assert found.call_timeout_s == 7.0


@pytest.mark.parametrize(
    ("isa", "align", "recipe"),
    [
        ("avx2", 8, "ort-x86"),
        ("avx2+avx512f", 16, "ort-x86"),
        ("avx2+avx512f+avx512_vnni", 8, "ort-x86"),
        ("asimd+asimddp", 8, "ort-arm"),
    ],
)
def test_alignment_and_recipe_follow_the_instruction_set(isa: str, align: int, recipe: str) -> None:
    profile = load_profile("cpu")
    assert rules_for(profile, isa).align == align
    assert recipe_for(profile, isa) == recipe


def test_the_fake_target_says_that_it_is_simulated() -> None:
    assert load_profile("fake").simulated
    assert not load_profile("cpu").simulated
