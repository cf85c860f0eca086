"""Config model of runs with a prompt, and the checks of the prompt's words. The module does not import torch."""

from typing import Any, Literal

from pydantic import Field

from threedgen.config.errors import key_prefix
from threedgen.config.sections import RunConfig
from threedgen.guidance.options import PriorConfig
from threedgen.guidance.weights.tokens import Vocabulary, prompt_reader
from threedgen.run.prompts import reading_notes, unknown_words_note, word_notes


class PromptedConfig(RunConfig):
    """Base class of the config models of tasks with a text prompt. It checks the words of the prompt before the run.

    A subclass may override `texts` (all prompts of the run), `of_object` (False if the prompt describes a scene) and
    `used_word` (the word of a prompt that sets the material of the asset).
    """

    prompt: str = Field("", description="text for the prior; the toybox prior receives the words that it knows")
    prompt_check: Literal["on", "off"] = Field(
        "on", description="stop if the embedded prior knows no noun of the prompt; off: continue"
    )

    def check(self) -> None:
        super().check()
        prior: Any = getattr(self, "prior", None)
        if isinstance(prior, PriorConfig):
            with key_prefix("prior"):
                prior.check_sampling()

    @property
    def of_object(self) -> bool:
        """True if the prompt describes one object, False if it describes a scene."""
        return True

    def texts(self) -> list[str]:
        """Return all prompts of the config, for checks before the run.

        Subclasses raise ConfigError if a prompt is missing, or if two options contradict each other.
        """
        return [self.prompt]

    def vocabulary(self) -> Vocabulary | None:
        """Return the words that the prior (diffusion model) knows; None if it takes any text, or there is no prior.

        Raises ConfigError if the weights of the prior cannot be read.
        """
        prior: Any = getattr(self, "prior", None)
        with key_prefix("prior"):
            return None if prior is None else prior.vocabulary()

    def used_word(self, prompt: str) -> str:
        """Return the word of `prompt` that sets the material of the asset, such as "steel".

        This word has an effect even if the prior (diffusion model) does not know it, and a note tells so. The
        result is "" if there is no such word, as in the base class.
        """
        return ""

    def check_prompt(self) -> None:
        """Raise ConfigError if the prompt, or one of several, names nothing that the prior (diffusion model) knows.

        A prior without a closed vocabulary knows everything. With the option `prompt_check` off, nothing is checked.
        """
        if self.prompt_check == "on":
            for text in [self.prompt] if self.of_object else self.texts():
                prompt_reader(self.vocabulary()).check(text, self.of_object)

    def usual_height(self) -> tuple[str, float] | None:
        """Return the prompt's object, such as "a dog", and its usual height in metres; None for an unknown height."""
        return prompt_reader(None).usual_height(self.prompt)

    def prompt_notes(self) -> list[str]:
        """Return warnings if the prompt names several objects or parts, or words of the negative prompt are changed.

        For a prior (diffusion model) that takes any text, there are none.
        """
        vocabulary = self.vocabulary()
        text, negative = getattr(self, "negative_prompt", ""), list[str]()
        if vocabulary is not None:
            unknown = vocabulary.unknown(text)
            negative = unknown_words_note(unknown) + reading_notes(vocabulary.read(text), dict(unknown))
        return prompt_reader(vocabulary).notes(self.prompt) + [f"negative_prompt: {note}" for note in negative]

    def notes(self) -> list[str]:
        vocabulary, found = self.vocabulary(), [*super().notes()]
        if vocabulary is not None:
            takes_negative, words = hasattr(self, "negative_prompt"), list[str]()
            for text in self.texts():
                reading = vocabulary.read(text)
                words += word_notes(text, vocabulary.unknown(text), reading, self.used_word(text), takes_negative)
            found += dict.fromkeys(words)
        return [*found, *(self.prompt_notes() if self.of_object else [])]
