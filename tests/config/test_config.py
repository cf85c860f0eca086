import io
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.errors import refused
from tests.support.toy_task import YAML, toy  # noqa: F401
from threedgen import config
from threedgen.config import ConfigError, Scheduled, at, fields, layers, registry, yaml_text
from threedgen.config.sections import LoggerConfig

ROOT = Path(__file__).parents[2]

SPECIAL = "{}[]()&*!|>'\"%@`#,:?-=<>~$\\/ \t\n\r\x00\x1b\x85\ufeff\u2028é猫🐶0123456789eE.+_nulltrue"
TEXTS = st.one_of(st.text(st.sampled_from(SPECIAL), max_size=40), st.text(max_size=40))
KEYS = st.one_of(st.text(st.sampled_from(SPECIAL), max_size=8), st.integers(-9, 99), st.floats(allow_nan=False))
LEAVES = st.one_of(TEXTS, st.booleans(), st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=10
)
in_place = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


def mistakes(path: Path | str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        config.load(path, overrides)
    return str(error.value)


@settings(max_examples=60)
@given(TREES)
def test_yaml_round_trip(tree: Any) -> None:
    assume("inf" not in repr(tree))
    back = yaml_text.parse(yaml_text.write(tree), "test")
    assert back == tree
    assert repr(back) == repr(tree)  # 1 is not 1.0 and not true


SCALARS = {
    "1e4": 1e4, "1e-2": 0.01, ".5": 0.5, "5.": 5.0, "-3": -3, "012": 12, "true": True, "False": False,
    "null": None, "~": None, "": None,
    **{text: text for text in ("no", "on", "yes", "1:30", "2020-01-01", "0x10", "1_000", ".inf", "${HOME}")},
}  # fmt: skip


def test_parse_scalars() -> None:
    found = {text: yaml_text.parse(text, "test") for text in SCALARS}
    assert found == SCALARS and list(map(type, found.values())) == list(map(type, SCALARS.values()))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", ["line 3", "'a'", "twice"]),
        ("a: &x [1]\nb: *x\n", ["line 1", "aliases"]),
        ("a: !!python/object/apply:os.system ['true']\n", ["line 1", "tag"]),
        ("true: 1\n", ["line 1", "key"]),
        ("a: 1\n---\nb: 2\n", ["line 2"]),
        ("a: [1, 2\n", ["line 2"]),
        ("[" * 5000, ["nested"]),
        ("a: " + "9" * 5000, ["line 1", "digits"]),
        ("- a\n- b\n", ["key: value"]),
        ("#" * 1_000_001, ["1 MB"]),
    ],
)
def test_refused_yaml_names_the_line(toy: Path, text: str, words: list[str]) -> None:  # noqa: F811
    toy.write_text(text, encoding="utf-8")
    message = mistakes(toy)
    assert all(word in message for word in [str(toy), *words]), message


@in_place
@given(prompt=TEXTS)
@example("a cat #1")
@example("1e3")
@example("null")
@example("${oc.env:HOME}")
@example("a=b=c")
@example("")
def test_prompt_is_unchanged_by_load_and_dump(toy: Path, prompt: str) -> None:  # noqa: F811
    first = config.load(toy, [f"prompt={prompt}"])
    assert first.prompt == prompt
    saved = toy.with_name("resolved.yaml")
    saved.write_text(config.dump(first), encoding="utf-8", newline="")
    again = config.load(saved)
    assert again == first and again.prompt == prompt
    assert config.config_hash(again) == config.config_hash(first)


def test_overrides_are_typed_by_their_field(toy: Path) -> None:  # noqa: F811
    words = "seed=1e4 trainer.max_steps=12 note=null lambdas.orient=0.5 trainer.deterministic=true elevation=[10,20]"
    loaded = config.load(toy, [*words.split(), "prior.guidance_scale={0: 10, 50: 5}", "checkpoint={seconds: 5}"])
    assert (loaded.seed, loaded.trainer.max_steps, loaded.elevation) == (10000, 12, (10.0, 20.0))
    assert loaded.prior.guidance_scale == {0: 10.0, 50: 5.0}
    assert loaded.note is None and loaded.lambdas == {"orient": 0.5}
    assert loaded.trainer.deterministic is True and loaded.checkpoint.seconds == 5
    assert config.load(toy, ["note=nullx"]).note == "nullx"
    assert config.load(toy, ["seed=1", "seed=2"]).seed == 2
    words = ["prompt=a dog", "occupancy.resolution=8", "occupancy=null"]
    assert layers.load("mvdream-toybox", words).occupancy is None
    assert layers.load("mvdream-toybox", [words[0], *words[:0:-1]]).occupancy.resolution == 8
    # values from Python are not parsed
    loaded = config.load(toy, values={"prompt": "1: 2", "trainer": {"max_steps": 3}, "trainer.devices": 2})
    assert (loaded.prompt, loaded.trainer.max_steps, loaded.trainer.devices) == ("1: 2", 3, 2)
    with refused(None, "arguments: sed: ", "'seed'"):
        config.load(toy, values={"sed": 1})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sed=3", ["sed: ", "'seed'", "'3'"]),
        ("prior.width=3", ["prior.width: ", "prior.name=small"]),
        ("prior.name=bigg", ["prior.name: ", "'big'", "small", "'bigg'"]),
        ("shape.radius=-1", ["shape.radius: ", "number > 0", "(got -1)"]),
        ("mode=exakt", ["mode: ", "fast | exact", "'exact'?", "'exakt'"]),
        ("trainer.gradient_clip_val=.inf", ["trainer.gradient_clip_val: ", "number | null > 0"]),
        ("seed=true", ["seed: ", "whole number", "(got True)"]),
        ("elevation=[1]", ["elevation: ", "list of 2: number", "(got [1])"]),
        ("kinds=[raund]", ["kinds: ", "list: round | flat", "'round'?", "['raund']"]),
        ("prior.guidance_scale={0: 1, 50%: 2}", ["mixed"]),
        ("prior.guidance_scale={0: 1, 5: -2}", ["number or schedule >= 0", "-2"]),
        ("seed", ["key=value", "'seed'"]),
        ("task=tooy", ["task", "'toy'"]),
    ],
)
def test_mistake_names_key_value_and_choice(toy: Path, override: str, words: list[str]) -> None:  # noqa: F811
    message = mistakes(toy, override)
    assert "\n" not in message and "command line" in message
    assert all(word in message for word in words), message


def test_component_is_checked_by_the_model_of_its_name(toy: Path) -> None:  # noqa: F811
    for words in (["prior.name=small", "prior.width=3"], ["prior.width=3", "prior=small"]):
        made = config.load(toy, words)
        assert type(made.prior).__name__ == "SmallPrior" and made.prior.width == 3
        assert "width: 3" in config.dump(made) and '"width":3' in made.model_dump_json()
    for text in ("prior: small", "prior: {name: small}"):
        toy.write_text(f"task: toy\nprompt: a cat\n{text}\n")
        assert (config.load(toy).prior.width, config.load(toy, ["prior.width=3"]).prior.width) == (8, 3)
    toy.write_text("task: toy\nprompt: a\nprior: {guidance_scale: 2}\n")
    assert config.load(toy).prior.name == "big"  # the default name


def test_section_in_part_keeps_its_default_and_the_hash_ignores_the_folder(toy: Path) -> None:  # noqa: F811
    loaded, changed = config.load(toy), config.load(toy, ["trainer.max_steps=5"])
    assert (changed.trainer.max_steps, changed.trainer.log_every_n_steps) == (5, 7)
    assert (loaded.trainer.max_steps, loaded.trainer.log_every_n_steps) == (1000, 7)
    assert config.load(toy, ["shape.name=square"]).shape.side == 1.0
    with pytest.raises(ValidationError):
        loaded.seed = 3
    first = config.config_hash(config.load(toy))
    assert first == config.config_hash(config.load(toy, ["out=elsewhere", "about=x"]))
    assert first != config.config_hash(config.load(toy, ["seed=1"]))
    assert len(first) == 64


def test_all_mistakes_are_reported_with_their_source(toy: Path) -> None:  # noqa: F811
    toy.write_text(YAML + "trainr:\n  max_steps: 3\nmine: {0: 8}\nshape:\n  name: square\n  sid: 2\n")
    lines = mistakes(toy, "seed=true", "mode=x", "trainer.steps=3").splitlines()
    found = sorted((line.split(": ")[0], line.split(": ")[1]) for line in lines)
    typed = [("command line", key) for key in ("mode", "seed", "trainer.steps")]
    assert found == sorted([(str(toy), "shape.sid"), (str(toy), "trainr"), (str(toy), "mine"), *typed])
    for text, key in (("task: toy\n", "prompt"), ("", "task")):
        toy.write_text(text)
        assert f"{key}: is missing" in mistakes(toy)


def test_mistakes_in_list_entries_name_entry_and_option() -> None:
    with refused(None, "prior.loras.1.scale: ", "10", "80") as caught:
        config.load("sds-sd", ["prompt=a dog", "prior.loras=[{file: a}, {file: b, scale: 80}]"])
    assert "prior.name" not in str(caught.value)


def test_wandb_without_login_is_refused_unless_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threedgen.config.optional.installed", lambda module: True)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # no terminal
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("NETRC", "WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with refused("name", "WANDB_MODE=offline", "WANDB_API_KEY"):
        LoggerConfig(name="wandb").check()
    for name, value in {"WANDB_MODE": "offline", "WANDB_API_KEY": "0"}.items():
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            LoggerConfig(name="wandb").check()
    for name in (".netrc", "_netrc", "wandb/settings"):
        (file := tmp_path / name).parent.mkdir(exist_ok=True)
        file.touch()
        LoggerConfig(name="wandb").check()
        file.unlink()


class _OneSchedule(config.Config):
    value: Scheduled = 1.0


def test_at_and_refused_schedules() -> None:
    assert at(3, 17) == 3.0
    line = _OneSchedule(value={10: 0, 20: 1}).value
    assert [at(line, step) for step in (0, 10, 15, 20, 99)] == [0, 0, 0.5, 1, 1]
    hill = _OneSchedule(value={0: 1, 10: 3, 20: 7, 40: 5}).value
    assert [at(hill, step) for step in (0, 5, 10, 15, 20, 30, 40)] == [1, 2, 3, 5, 7, 6, 5]
    share = _OneSchedule(value={"50%": 4, "0 %": 0}).value
    assert share == {"0%": 0.0, "50%": 4.0}
    assert [at(share, step, max_steps=200) for step in (0, 50, 100, 200)] == [0, 2, 4, 4]
    with pytest.raises(ValueError, match="max_steps"):
        at(share, 3)
    nan = float("nan")
    for wrong in ("a", True, None, {-1: 0}, {"101%": 0}, {1.5: 0}, {0: "x"}, {0: nan}, 10**400, {1: 0, "1": 1}, {}):
        with pytest.raises(ValidationError):
            _OneSchedule(value=wrong)


def test_base_is_merged(toy: Path) -> None:  # noqa: F811
    below = toy.with_name("below.yaml")
    below.write_text(
        YAML + "trainer: {max_steps: 5, devices: 2}\nelevation: [1, 2]\nlambdas: {a: 1}\nmode: exact\n"
        "shape: {name: square, side: 4}\n"
    )
    toy.write_text(
        "base: below\nprior:\n  guidance_scale: {0: 3}\ntrainer: {devices: 1}\nlambdas: {b: 2}\nshape: {name: round}\n"
    )
    loaded = config.load(toy, ["prior.guidance_scale={7: 1}"])
    assert (loaded.trainer.max_steps, loaded.trainer.devices, loaded.mode) == (5, 1, "exact")
    assert loaded.lambdas == {"a": 1, "b": 2} and loaded.prior.weights == "here"
    assert loaded.prior.guidance_scale == {7: 1.0}  # a schedule replaces
    assert loaded.shape.radius == 1.0  # a section of another name replaces: `side` is gone
    digits = {"1": {"size": 8, "scale": {0: 3}}, "2": {"size": 16}}  # sections named by digits
    assert fields.merge(digits, {"1": {"scale": {"7": 1}}}) == {"1": {"size": 8, "scale": {"7": 1}}, "2": {"size": 16}}


def test_base_circle_missing_base_and_other_encodings_are_refused(toy: Path) -> None:  # noqa: F811
    for name, base in (("a", "b"), ("b", "c"), ("c", "b")):
        toy.with_name(f"{name}.yaml").write_text(f"base: {base}.yaml\n")
    assert "b.yaml -> c.yaml -> b.yaml" in mistakes("a")
    toy.write_text("base: nowhere\n")
    assert "base" in mistakes(toy) and "nowhere" in mistakes(toy)
    toy.write_text("base: [a, b]\n")
    assert "should be one file" in mistakes(toy)
    toy.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in mistakes(toy)
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):  # with a byte order mark, as of an editor or PowerShell
        toy.write_text("\ufeff" + YAML, encoding=encoding)
        assert config.load(toy).prompt == "a cat"


def test_find_by_path_or_name(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    shipped = toy.parent / "shipped"
    (shipped / "more").mkdir(parents=True)
    (shipped / "mvdream-toybox.yaml").write_text(YAML)
    (shipped / "more" / "deep.yaml").write_text(YAML)
    monkeypatch.setattr(layers, "folder", lambda name: shipped)
    for name in ("mvdream-toybox", "mvdream-toybox.yaml", "more/deep", str(toy), "toy", "toy.yaml"):
        assert config.load(name).prompt == "a cat"
    assert config.shipped() == ["more/deep", "mvdream-toybox"]
    assert "did you mean 'mvdream-toybox'" in mistakes("mvdraem-toybx.yaml")
    for name in ("", "\0", "x" * 5000, "shipped", "\x1b[31m"):
        message = mistakes(name)
        assert "\x1b" not in message and "\0" not in message


def test_shipped_configs_are_valid() -> None:
    for name in config.shipped():
        tree = layers.merged(layers.read_layers(config.find(name)))
        assert tree.get("about") and tree.get("needs"), name
        needs_prompt = "prompt" in registry.config_model("task", tree["task"]).model_fields
        loaded = config.load(name, ["prompt=a dog"] if needs_prompt else [])
        assert loaded.task in registry.names("task") and config.dump(loaded)
        try:  # whatever is missing on this machine, the answer is none or a sentence
            config.load(name).check()
        except ConfigError as error:
            assert "\n" not in str(error)


def test_run_folders_named_in_configs_and_docs_exist() -> None:
    files = [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "docs").glob("*.md")]
    named = {
        found for path in files for found in re.findall(r"outputs/(train-[\w-]+)/([\w-]+)/", path.read_text("utf-8"))
    }
    assert named
    for name, folder in named:
        options = config.load(name)
        assert not hasattr(options, "prompt") and options.out is None and folder == "run", (name, folder)


def test_number_of_reported_mistakes_is_limited(toy: Path) -> None:  # noqa: F811
    toy.write_text("task: toy\n" + "".join(f"key{n}: 1\n" for n in range(2000)))
    assert len(mistakes(toy).splitlines()) == 31
    toy.write_text("task: toy\n" + "".join(f"key{n}: 1\n" for n in range(60_000)))
    assert "more than 20000 keys and values" in mistakes(toy)
