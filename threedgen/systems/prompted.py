"""Config model of runs with a prompt, and the checks of the prompt's words. The module does not import torch."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from threedgen.config.errors import ConfigError, key_prefix, short
from threedgen.config.sections import RunConfig
from threedgen.guidance.weights.tokens import Vocabulary, prompt_reader
from threedgen.run.prompts import reading_notes, received_note, unknown_words_note


class PromptedConfig(RunConfig):
    """Base class of the config models of tasks with a prompt. It checks the words of the prompt."""

    prompt: str = Field("", description="text for the prior; the toybox prior receives the words that it knows")
    prompt_check: Literal["on", "off"] = Field(
        "on", description="stop if the embedded prior knows no noun of the prompt; off: continue"
    )

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
        """Return a word of a prompt that has an effect even if the prior does not know it; "" if there is none."""
        return ""

    def check_prompt(self, others: Iterable[str] = ()) -> None:
        """Raise ConfigError if a prompt names no object that the prior (diffusion model) knows.

        `others` are the prompts to check instead of the prompt of the config; empty: the prompt of the config is
        checked. A prior without a closed vocabulary knows all objects. With the option `prompt_check` off, nothing is
        checked.
        """
        if self.prompt_check == "off":
            return
        reader, refused = prompt_reader(self.vocabulary()), dict[str, ConfigError]()
        for prompt in others or [self.prompt]:
            try:
                reader.check(prompt)
            except ConfigError as error:
                refused[prompt] = error
        if refused:
            first, *rest = refused
            named = [*map(short, rest[:2]), *([f"{len(rest) - 2} more"] if len(rest) > 2 else [])]
            also = f"; so do {' and '.join(named)}" if rest else ""
            raise ConfigError(f"{refused[first].problem}{also}", refused[first].key)

    def usual_height(self) -> tuple[str, float] | None:
        """Return the prompt's object, such as "a dog", and its usual height in metres; None for an unknown height."""
        return prompt_reader(None).usual_height(self.prompt)

    def prompt_notes(self) -> list[str]:
        """Return warnings about the objects in the prompt, and about unknown words in the negative prompt."""
        vocabulary = self.vocabulary()
        unknown = vocabulary.unknown(getattr(self, "negative_prompt", "")) if vocabulary else []
        negative = [f"negative_prompt: {note}" for note in unknown_words_note(unknown)]
        return [*prompt_reader(vocabulary).notes(self.prompt), *negative]

    def notes(self) -> list[str]:
        vocabulary = self.vocabulary()
        texts = [] if vocabulary is None else self.texts()
        unknown = dict[str, list[str]]()
        if vocabulary is not None:
            for text in texts:
                used = self.used_word(text)
                unknown |= {word: near for word, near in vocabulary.unknown(text) if word != used}
        readings = {text: vocabulary.read(text) for text in texts} if vocabulary else {}
        changed = [note for reading in readings.values() for note in reading_notes(reading)]
        if len(readings) == 1:
            changed += received_note(*next(iter(readings.items())))
        return [
            *super().notes(),
            *unknown_words_note(list(unknown.items())),
            *dict.fromkeys(changed),
            *(self.prompt_notes() if self.of_object else []),
        ]
