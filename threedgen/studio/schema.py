"""Models of the JSON requests and answers of the studio's API, and the check of a prompt."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from threedgen.export.options import AssetConfig
from threedgen.guidance.weights.tokens import prompt_reader
from threedgen.run.prompts import reading_notes, received_note
from threedgen.systems.prompted import PromptedConfig
from threedgen.viewer.record import Asset

State = Literal["waiting", "running", "stopping", "finishing", "finished", "cancelled", "failed"]
FileName = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}-[\w.-]{1,100}$")]


class AssetOrder(AssetConfig):
    """Options of the exported textured mesh (asset) in a request to the studio.

    They cannot name files, so that clients cannot search this machine's files.
    """

    defaults_of_run: ClassVar[bool] = True

    palette: str | None = Field(None, pattern=r"^[\w#, ]+$", description="colours that the base colour is shifted to")


class Order(BaseModel):
    """Request for an object: from a prompt, from an image, or from a mesh that gets a texture by a prompt or an image.

    If `edit` is set, the object of an earlier run is changed instead, to fit the prompt.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field("", max_length=2000, description="text, such as 'a red penguin'")
    seed: int = Field(0, ge=0, lt=2**53, description="another seed makes another object")
    image: FileName | None = Field(None, description="name of an uploaded image")
    mesh: FileName | None = Field(None, description="name of an uploaded mesh, which is textured")
    edit: str | None = Field(None, min_length=1, description="name of a run whose object changes to fit the prompt")
    export: AssetOrder = Field(
        AssetOrder(), description="asset; unset options are those of the config; not with `mesh`"
    )


class Progress(BaseModel):
    """Progress of a job: the current phase, its number of steps done and in total, and texts such as the loss."""

    phase: str
    done: int
    total: int
    left: str = Field("", description="time left in this phase, such as '1:05 min'; empty while it is unknown")
    details: list[str] = []


class JobInfo(BaseModel):
    """Job in the queue, as the API returns it. `run` names its run in requests such as GET /runs/NAME."""

    number: int = Field(description="not reused for another job, even after a restart")
    prompt: str
    seed: int
    run: str
    state: State
    progress: Progress | None
    error: str
    image: str = Field(description="file of the run with the newest image; empty if there is none")
    finished: bool = Field(description="whether the run has a result to show")
    can_finish: bool = Field(description="whether there is an object of which `finish` makes an asset")
    can_export: bool = Field(description="whether its run, once finished, can be exported again and edited")


class Status(BaseModel):
    """State of the queue, as the API returns it.

    Attributes:
        jobs: jobs in the order of their submission.
        over: counter that increases when a run has ended or was deleted. It tells clients to load the list of runs
            again.
    """

    jobs: list[JobInfo]
    over: int


class RunInfo(BaseModel):
    """Run that has a result, as the API returns it.

    Attributes:
        name: path of the run folder, relative to the studio's folder of runs.
        early: whether the optimisation was stopped before its last step.
        ended: end of the run in UTC, as in "2026-01-31T12:00Z".
        seconds: duration of the run; None if it is not recorded.
        report: whether the run has a report page.
        can_export: whether the asset (textured mesh) can be exported again, with other options.
    """

    name: str
    prompt: str
    seed: int | None
    early: bool
    ended: str
    seconds: float | None
    report: bool
    can_export: bool
    asset: Asset
    files: dict[str, int] = Field({}, description="size in bytes by file name; only in the answer about one run")


class Upload(BaseModel):
    name: str
    kind: Literal["image", "mesh"]


class Error(BaseModel):
    error: str


class Word(BaseModel):
    """Word of a prompt, checked against the vocabulary of the prior (diffusion model).

    Attributes:
        known: whether the prior receives the word or a synonym of it.
        material: whether the word sets the material of the asset; it then has an effect even if it is not known.
        near: similar words of the vocabulary if the word has no effect, else [].
    """

    word: str
    known: bool
    material: bool
    near: list[str]


class Words(BaseModel):
    """Check of a prompt against the vocabulary of the prior. All fields are empty for a prior that takes any text.

    Attributes:
        words: all words of the prompt.
        notes: warnings for the user.
        nouns: suggested nouns (names of objects) of the vocabulary. If the last word is an unfinished noun, such as
            "eleph", they are its completions. Otherwise they are examples, or [] if the prompt already has a known
            noun.
        typed: the unfinished last word, such as "eleph", if `nouns` are its completions; else "".
    """

    words: list[Word] = []
    notes: list[str] = []
    nouns: list[str] = []
    typed: str = ""


def vocabulary_of(config: Any) -> dict[str, list[str]]:
    """Return the vocabulary of the prior of a run config as a dict from category, such as "animals", to words.

    The dict is empty if the prior takes any text. Raises ConfigError if the vocabulary is damaged.
    """
    vocabulary = config.vocabulary() if isinstance(config, PromptedConfig) else None
    return {} if vocabulary is None else prompt_reader(vocabulary).categories()


def check_prompt(prompt: str, config: Any) -> Words:
    """Check a prompt against the vocabulary of the prior of a run config.

    The result has the words of the prompt, warnings and suggested nouns; all are empty if the prior takes any text.
    Raises ConfigError if the vocabulary is damaged.
    """
    vocabulary = config.vocabulary() if isinstance(config, PromptedConfig) else None
    if vocabulary is None:
        return Words()
    typed, nouns = prompt_reader(vocabulary).suggest(prompt)
    complete = prompt[: len(prompt) - len(typed)]
    unknown, reading, used = dict(vocabulary.unknown(prompt)), vocabulary.read(complete), config.used_word(prompt)
    received = set(vocabulary.split(reading.text))
    received |= {"a", "an"} if received else set()  # an article changes with its noun
    replaced = {word: name for typed, name in reading.replaced.items() for word in vocabulary.split(typed)}
    words = [
        Word(
            word=word,
            known=received.issuperset(replaced.get(word, word).split()),
            material=word == used,
            near=[] if word == used else unknown.get(word, []),
        )
        for word in vocabulary.split(prompt)
    ]
    notes = reading_notes(reading, unknown, takes_negative=False) + received_note(complete, reading)
    notes += config.model_copy(update={"prompt": prompt}).prompt_notes()
    return Words(words=words, notes=notes, nouns=nouns, typed=typed)
