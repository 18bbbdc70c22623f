"""Target profiles: shipped ones load, wrong ones say which key."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwloop.errors import UsageError
from hwloop.measure.profile import recipe_for, rules_for
from hwloop.measure.profile_file import known_profiles, load_profile

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
        (HEAD + "[space]\nalgin = 8", "unknown key 'space.algin': did you mean 'align'"),
        (HEAD + "[space]\nrecipee = 1", "did you mean 'recipe'"),
        (HEAD + '[space]\nprecisions = ["int4"]', "space.precisions is 'int4'"),
        (HEAD + "[protocol.row]\nrounds = 0", "protocol.row.rounds must be above zero"),
        (HEAD + "[protocol.raw]\nrounds = 1", "unknown key 'protocol.raw'.*row"),
        (HEAD + "[space]\nalign = 0.5", "space.align"),
        (HEAD + '[space]\nprecisions = "int8"', "space.precisions has the wrong type"),
        (HEAD + '[space]\nprecisions = ["int8"]', "space.precisions must have 'base'"),
        (HEAD + '[space]\nkinds = ["prune"]', "space.kinds must have 'keep'"),
        (HEAD + '[space]\nbase_precision = "fp16"', "space.base_precision is 'fp16'"),
        (HEAD + '[space]\nrecipe = "ort-x68"', "space.recipe is 'ort-x68'.*ort-x86"),
        (HEAD + 'transport = "pigeon"', "transport is 'pigeon'"),
        (HEAD + 'verified = "yes"', "verified has the wrong type"),
        (HEAD + "settings = 3", "settings has the wrong type"),
        (HEAD + "[settings]\nthreads = true", "settings.threads has the wrong type"),
        (HEAD + "[timeouts]\ncall_s = 0", "timeouts.call_s must be above zero"),
        (HEAD + "[timeouts]\nbuild_s = inf", "timeouts.build_s must be above zero and finite"),
        (HEAD + "[protocol]\nrow = 1", "protocol.row has the wrong type"),
        (HEAD + "[protocol.row]\ntarget_halfwidth = nan", "protocol.row.target_halfwidth must"),
        (HEAD + "[protocol.row]\nrounds = 1.5", "protocol.row.rounds has the wrong type"),
        ("description = ", "cannot read profile"),
    ],
)
def test_a_wrong_value_names_the_file_and_the_key(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        load_profile(str(path))
    assert str(path) in str(caught.value)


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no profile at .*absent\.toml"):
        load_profile(str(tmp_path / "absent.toml"))


def test_a_profile_in_the_working_folder_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "cpu.toml").write_text(HEAD + "[settings]\nthreads = 3")
    monkeypatch.chdir(tmp_path)
    assert load_profile("cpu").settings == {"threads": 3}


def test_an_alignment_that_is_asked_for_beats_the_instruction_set(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + '[space]\nalign = 4\nrecipe = "ort-arm"')
    assert rules_for(load_profile(str(path)), "avx2+avx512f").align == 4
    assert recipe_for(load_profile(str(path)), "avx2+avx512f") == "ort-arm"


def test_what_a_profile_does_not_ask_for_by_name_is_what_shipped_ones_search(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(HEAD)
    mine, shipped = (rules_for(load_profile(name), "avx2") for name in (str(path), "cpu"))
    assert mine.kinds == shipped.kinds


def test_a_profile_may_change_the_protocol(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + "[protocol.final]\ntime_limit_s = 3.5\n[timeouts]\ncall_s = 7")
    found = load_profile(str(path))
    assert found.protocols.final.time_limit_s == 3.5
    assert found.protocols.row.rounds == 3
    assert found.call_timeout_s == 7.0


@pytest.mark.parametrize(
    ("isa", "align", "recipe"),
    [
        ("avx2", 8, "ort-x86"),
        ("avx2+avx512f", 16, "ort-x86"),
        ("avx2+avx512f+avx512_vnni", 8, "ort-x86"),
        ("avx2+avx_vnni", 8, "ort-x86"),
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
