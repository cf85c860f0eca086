"""Keys and configs that got another name: the old one still works, and one line says the new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from threedgen import config
from threedgen.config import ConfigError, renamed, yaml_text
from threedgen.run.folder import differences, open_run, reopen
from threedgen.systems.generate.options import GenerateConfig


def written(folder: Path, text: str) -> Path:
    renamed._say.cache_clear()
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_an_old_key_is_the_new_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, "base: mvdream-sd21\ngroups: 3\nprompt: a dog\n")
    made = config.load(path)
    assert made.scenes_per_step == 3, "over that of the base, which has the new name"
    assert config.load(path).scenes_per_step == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: groups is called scenes_per_step now; the old name works for one more release"
    ]
    assert "\ngroups:" not in config.dump(made) and config.load(path, ["groups=5"]).scenes_per_step == 5
    assert caplog.records[-1].getMessage().startswith("command line: groups is called")
    assert config.load("mvdream-sd21", values={"prompt": "a", "judged": "normal"}).guidance_input == "normal"


def test_what_samples_views_is_called_alike_in_all_tasks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, "base: threedim-toybox\nsampling: {steps: 7}\n")
    assert config.load(path).sampler.steps == 7
    assert config.load("threedim-toybox", ["sampling.steps=9"]).threedim.steps == 9
    assert config.load("consistency", ["sampler=threedim", "sampler.steps=9"]).sampler.steps == 9
    assert config.load("train-threedim-toybox", ["training.sheet_guidance=4"]).training.guidance_scale == 4
    assert config.load("quick-toybox", ["prompt=a", "refine.sampling_steps=9"]).refine.steps == 9
    assert [record.getMessage().partition(": ")[2].split(";")[0] for record in caplog.records] == [
        "sampling is called sampler now",
        "sampling is called sampler now",
        "sheet_guidance is called guidance_scale now",
        "sampling_steps is called steps now",
    ]


def test_stages_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, "base: mvdream-toybox\nprompt: a dog\nstages: {coarse: {groups: 2}}\n")
    assert config.load(path).stage("coarse").scenes_per_step == 2
    assert [record.getMessage().split(" is ")[0] for record in caplog.records] == ["stages.coarse: groups"]


def test_both_names_are_one_too_many(tmp_path: Path) -> None:
    path = written(tmp_path, "base: mvdream-toybox\ngroups: 2\nscenes_per_step: 3\n")
    with pytest.raises(ConfigError, match="groups: is called scenes_per_step now, which is given too"):
        config.load(path)


def test_a_run_of_the_release_before_goes_on() -> None:
    now = config.plain(config.load("mvdream-toybox", ["prompt=a dog"]))
    before = {{"scenes_per_step": "groups", "guidance_input": "judged"}.get(key, key): now[key] for key in now}
    refine = {"sampling_steps" if key == "steps" else key: value for key, value in now["refine"].items()}
    before["refine"] = refine | {"views": 6}
    assert differences(before, now) == []
    assert differences(before | {"groups": 7}, now) == ["scenes_per_step: 7 -> 1.0"]


@pytest.mark.parametrize("name", ["mvdream-toybox", "sds-toybox"])
def test_a_run_with_the_toybox_prior_of_the_release_before_is_refused(name: str, tmp_path: Path) -> None:
    made = config.load(name, ["prompt=a dog"])
    tree = config.plain(made)
    tree["prior"] |= {"weights": "embedded"} | ({"front": 3.0} if name == "sds-toybox" else {})
    (tmp_path / "config.yaml").write_text(yaml_text.write(tree))
    for call in (lambda: open_run(made.model_copy(update={"out": str(tmp_path)}), name), lambda: reopen(tmp_path, [])):
        with pytest.raises(ConfigError, match="toybox prior of an earlier release"):
            call()


def test_a_key_that_has_gone_is_left_out_of_files_and_refused_in_words(caplog: pytest.LogCaptureFixture) -> None:
    old = {"task": "generate", "prompt": "a", "warm_start": {"share": 0.1, "size": 64}}
    assert renamed.in_tree(GenerateConfig, old, "old.yaml")["warm_start"] == {"share": 0.1}
    assert "old.yaml: size has no effect any more" in caplog.text
    assert renamed.in_run(old)["warm_start"] == {"share": 0.1}
    with pytest.raises(ConfigError, match="command line: warm_start.size: has no effect any more; leave it out"):
        config.load("quick-toybox", ["prompt=a", "warm_start.size=64"])


@pytest.mark.parametrize(
    "old",
    [
        {"task": "evaluate-prior", "first": 0, "worst": 20},
        {"task": "evaluate-3d", "first": 0, "worst": 20},
        {"task": "evaluate-subjects", "first": 0},
        {"task": "janus-meter", "truth": {"nouns": []}},
        {"task": "make-srn-toybox", "sheet": 8},
        {"task": "consistency", "sampler": {"name": "mvdream", "elevation": 15.0}},
    ],
    ids=lambda old: old["task"],
)
def test_runs_of_evaluations_with_keys_that_have_gone_are_read(old: dict) -> None:
    gone = {"first", "worst", "nouns", "sheet", "elevation"}
    kept = renamed.in_run(old)
    assert not gone & {key for tree in (kept, *kept.values()) if isinstance(tree, dict) for key in tree}
