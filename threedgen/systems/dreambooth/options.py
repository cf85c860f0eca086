"""Config model of the task mvdreambooth. The module does not import torch."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from threedgen.config import Config, ConfigError, Scheduled
from threedgen.config.registry import Component
from threedgen.config.sections import CheckpointConfig, TrainerConfig
from threedgen.guidance.options import MatteName
from threedgen.guidance.weights.tokens import KNOWN_IDENTIFIER, Vocabulary, prompt_reader
from threedgen.run.prompts import missing_words_note, normalise_prompt, remove_words
from threedgen.systems.prompted import PromptedConfig
from threedgen.systems.train.options import Guidance, default_trainer

Paths = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


class TuningConfig(Config):
    """Options of the training on the photos, and of prior preservation (DreamBooth).

    Section `tuning` of the task "mvdreambooth". Prior preservation keeps the prior from forgetting other objects of the
    subject's class.
    """

    preservation: Literal["l1", "l2", "images", "lora", "none"] = Field(
        "l1", description="prior preservation: l1 or l2 distance of the weights, class images, or LoRA"
    )
    weight: float = Field(1.0, ge=0, description="weight of the preservation loss")
    batch: int = Field(4, ge=1, le=256, description="photos per step")
    learning_rate: Scheduled = Field({"0%": 0.0, "5%": 1e-4}, ge=0, description="learning rate of the UNet")
    word_learning_rate: Scheduled = Field(
        0.0, ge=0, description="learning rate of the identifier's embedding; 0: frozen"
    )
    like: str = Field("", description="words whose mean embedding the identifier starts from; empty: all words")
    class_images: int = Field(16, ge=1, le=1000, description="class images, for preservation=images")
    class_prompts: tuple[str, ...] = Field(
        ("{class}",), min_length=1, description="prompts of class images; {class} is the prompt without the identifier"
    )
    class_steps: int = Field(30, ge=1, le=1000, description="DDIM steps of class images")
    class_guidance: float = Field(5.0, ge=0, description="guidance scale of class images")


class SheetConfig(Config):
    """Options of the sample sheet, an image with four views of the subject and four views of its class.

    Section `sheet` of the task "mvdreambooth". The subject is the object of the photos, such as one dog; its class is
    all dogs.
    """

    steps: int = Field(25, ge=1, le=1000, description="DDIM steps")
    guidance_scale: Guidance = 5.0


class MVDreamBoothConfig(PromptedConfig):
    """Training of a multi-view prior on a few photos of one subject.

    Options of the task "mvdreambooth".
    """

    photos: Paths = Field((), description="folder or files of 2 to 100 photos of one subject; usually 4 to 6")
    matte: MatteName = None
    prompt: str = Field("", description="caption of the photos with the identifier, such as 'a [v] dog'")
    identifier: str = Field("[v]", min_length=1, max_length=32, pattern=r"^\S+$", description="word for the subject")
    prior: Annotated[Any, Component("prior", default="mvdream", only=("mvdream",))] = Field(
        {}, description="prior that is trained"
    )
    tuning: TuningConfig = TuningConfig()
    sheet: SheetConfig = SheetConfig()
    trainer: TrainerConfig = default_trainer(400, val_check_interval=100)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)

    @model_validator(mode="after")
    def _check_prior(self) -> Self:
        if self.prior.personalisation is not None:
            raise ValueError("prior.personalisation should be removed: training starts from the base weights")
        if self.prior.dtype == "fp16":
            raise ValueError("prior.dtype should be auto, bf16 or fp32: gradients would underflow in fp16")
        return self

    @property
    def class_prompts(self) -> list[str]:
        """Prompts of the class images: images of the subject's class, such as dogs, sampled by the original prior.

        Training on class images preserves the class. The prompts are the option `tuning.class_prompts`, in which
        "{class}" is replaced by the class prompt, such as "a dog". If there are more prompts than class images, the
        last prompts are left out.
        """
        texts = self.tuning.class_prompts[: self.tuning.class_images]
        return [text.replace("{class}", self.class_prompt) for text in texts]

    @property
    def class_prompt(self) -> str:
        """Prompt of the subject's class: the prompt without the identifier, the word for the subject.

        For example, "a dog" for "a [v] dog".
        """
        return remove_words(self.prompt, [self.identifier])

    def vocabulary(self) -> Vocabulary | None:
        found = super().vocabulary()
        if found is not None:
            if self.identifier.lower() in found.known:
                raise ConfigError(KNOWN_IDENTIFIER, "identifier", self.identifier)
            found.added.append(self.identifier)  # the run adds it to the tokenizer
        return found

    def check_prompt(self) -> None:
        if self.prompt_check == "on":
            prompt_reader(self.vocabulary()).check(self.class_prompt)  # the identifier would count as an object

    def notes(self) -> list[str]:
        return [*super().notes(), *missing_words_note(self.prompt, [self.identifier])]

    def check(self) -> None:
        from threedgen.data.photos import find
        from threedgen.guidance.weights.other_models import check_matte

        example = f"a {self.identifier} dog"
        normalise_prompt(self.prompt, example=example)
        if not self.class_prompt:
            raise ConfigError(f'should also name the class of the subject, such as "{example}"', "prompt")
        find(self.photos)
        if self.matte is not None:
            check_matte(self.matte)
        super().check()
        self.check_prompt()
