"""The words of every task that draws from them, and the prompt of those that draw a thing (no torch here)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from threedgen.config.errors import ConfigError, short, within
from threedgen.config.sections import RunConfig
from threedgen.run.prompts import unknown_words_note

if TYPE_CHECKING:
    from threedgen.guidance.weights.tokens import Vocabulary


class WordedConfig(RunConfig):
    """A run whose prior reads words; those that it does not know are told beforehand."""

    def texts(self) -> list[str]:
        """What the prior reads, as far as it is known before the run. Raises ConfigError."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        vocabulary = self.vocabulary()
        if vocabulary is None:
            return super().notes()
        unknown = {word: near for text in self.texts() for word, near in vocabulary.unknown(text)}
        return [*super().notes(), *unknown_words_note(list(unknown.items()))]

    def vocabulary(self) -> Vocabulary | None:
        """The words of the prior, if there is one and these are all that it can read. Raises ConfigError."""
        prior = self.prior  # type: ignore[attr-defined]  # who draws, of whatever kind
        with within("prior"):
            return None if prior is None else prior.vocabulary()


class PromptedConfig(WordedConfig):
    """What is to be drawn, and whether its words are looked at before any work begins."""

    prompt: str = Field("", description="what to make; taken as it is")
    prompt_check: Literal["on", "off"] = Field(
        "on", description="stop if the embedded prior knows nothing that the prompt names; off: go on all the same"
    )

    def check_prompt(self, others: Iterable[str] = ()) -> None:
        """Does the prior know a thing that the prompt names, or each of `others`, as far as that can be told?

        Raises ConfigError for the first that it does not, naming up to two more.
        """
        from threedgen.data.toybox.prompt_words import check_noun

        if self.prompt_check == "off":
            return
        vocabulary, refused = self.vocabulary(), dict[str, ConfigError]()
        for prompt in others or [self.prompt]:
            try:
                check_noun(prompt, vocabulary)
            except ConfigError as error:
                refused[prompt] = error
        if refused:
            first, *rest = refused
            named = [*map(short, rest[:2]), *([f"{len(rest) - 2} more"] if len(rest) > 2 else [])]
            also = f"; so do {' and '.join(named)}" if rest else ""
            raise ConfigError(f"{refused[first].problem}{also}", refused[first].key)

    def usual_height(self) -> tuple[str, float] | None:
        """What the prompt names ("a dog") and how many metres tall it usually is; None if nobody knows."""
        from threedgen.data.toybox.heights import usual_height

        return usual_height(self.prompt)

    def prompt_notes(self) -> list[str]:
        """A sentence for each thing in the prompt that is more than the prior has learnt, on words of the negative
        prompt that it does not know, and on what is asked for and has no effect. Raises ConfigError."""
        from threedgen.data.toybox.prompt_words import notes

        vocabulary = self.vocabulary()
        unknown = vocabulary.unknown(getattr(self, "negative_prompt", "")) if vocabulary else []
        return [*notes(self.prompt, vocabulary), *(f"negative_prompt: {note}" for note in unknown_words_note(unknown))]

    def texts(self) -> list[str]:
        return [self.prompt]

    def notes(self) -> list[str]:
        return [*super().notes(), *self.prompt_notes()]
