"""Config models of MVDreamBooth (no torch here)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from threedgen.config import Config, ConfigError, Scheduled
from threedgen.config.registry import Component
from threedgen.config.sections import CheckpointConfig, TrainerConfig
from threedgen.run.prompts import normalise_prompt, remove_words
from threedgen.systems.prompted import PromptedConfig

Paths = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


class LoRAConfig(Config):
    """Low-rank terms on the attention of the UNet (arXiv 2106.09685)."""

    rank: int = Field(8, ge=1, le=512, description="rank of each term")
    alpha: float = Field(8.0, gt=0, description="its weight times the rank")


class TuningConfig(Config):
    """What moves, how fast, and what keeps the prior from forgetting its other subjects."""

    preservation: Literal["l1", "l2", "images", "lora", "none"] = Field(
        "l1",
        description="against forgetting: mean distance of the weights to the base's, l1 (MVDream) or l2 (squared); "
        "images of the class that the base drew (DreamBooth); lora, only low-rank terms learn; none",
    )
    weight: float = Field(1.0, ge=0, description="of the preservation term, lambda")
    batch: int = Field(4, ge=1, le=256, description="pictures in a step")
    learning_rate: Scheduled = Field({"0%": 0.0, "5%": 1e-4}, ge=0, description="of the UNet")
    word_learning_rate: Scheduled = Field(
        0.0, ge=0, description="of the identifier's row in the text encoder; 0: stays"
    )
    like: str = Field("", description="words whose mean the identifier starts from; empty: that of all words")
    augment: float = Field(1.0, ge=0, le=2, description="strength of zooms, moves and changes of brightness; 0: none")
    class_images: int = Field(16, ge=1, le=1000, description="pictures of the class, for preservation=images")
    class_prompts: tuple[str, ...] = Field(
        ("{class}",), min_length=1, description="what they show, in turn; {class} is the prompt without the identifier"
    )
    class_steps: int = Field(30, ge=1, le=1000, description="DDIM steps of these")
    class_guidance: float = Field(5.0, ge=0, description="their guidance scale")
    lora: LoRAConfig = LoRAConfig()


class SheetConfig(Config):
    """The four views of the subject beside those of its class that are drawn every trainer.val_check_interval steps."""

    steps: int = Field(25, ge=1, le=1000, description="DDIM steps")
    guidance_scale: float = Field(5.0, ge=0)
    elevation: float = Field(15.0, ge=-90, le=90, description="degrees")
    azimuth: float = Field(20.0, ge=-360, le=360, description="degrees, of the first view; 0 is the front")


class MVDreamBoothConfig(PromptedConfig):
    """Teach a multi-view prior one subject from a few photos."""

    photos: Paths = Field((), description="a folder, or files, with 2 to 100 photos of one subject; 4 to 6 are usual")
    fill: float = Field(0.75, gt=0.1, le=1, description="how much of a picture's side a subject fills that is cut out")
    prompt: str = Field("", description="what the photos show, such as 'a [v] dog', the identifier in it")
    identifier: str = Field("[v]", min_length=1, max_length=32, pattern=r"^\S+$", description="the subject's name")
    prior: Annotated[Any, Component("prior", default="mvdream", only=("mvdream",))] = Field(
        {}, description="the base that is tuned"
    )
    tuning: TuningConfig = TuningConfig()
    sheet: SheetConfig = SheetConfig()
    trainer: TrainerConfig = TrainerConfig(max_steps=400, gradient_clip_val=1.0, val_check_interval=100)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)

    @model_validator(mode="after")
    def _tunable(self) -> MVDreamBoothConfig:
        if self.prior.personalisation is not None:
            raise ValueError("prior.personalisation should be left out: a subject is learnt from the base itself")
        if self.prior.dtype == "fp16":
            raise ValueError("prior.dtype should be auto, bf16 or fp32: gradients would vanish in fp16")
        return self

    @property
    def class_prompts(self) -> list[str]:
        """What pictures of the class are drawn of: no more prompts than pictures."""
        texts = self.tuning.class_prompts[: self.tuning.class_images]
        return [text.replace("{class}", self.class_prompt) for text in texts]

    @property
    def class_prompt(self) -> str:
        """The prompt without the identifier: "a [v] dog" -> "a dog"."""
        return remove_words(self.prompt, [self.identifier])

    def check(self) -> None:
        from threedgen.data.photos import find

        if not self.prompt.strip():
            raise ConfigError('is empty; say what the photos show, such as prompt="a [v] dog"', "prompt")
        normalise_prompt(self.prompt)
        if not self.class_prompt:
            example = f'"a {self.identifier} dog"'
            raise ConfigError(f"should also say of what kind the subject is, such as {example}", "prompt")
        find(self.photos)
        super().check()
        self.check_prompt()
