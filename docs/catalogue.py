"""Markdown catalogue of the toybox: nouns, colours, sizes, accessories, wordings, held-out combinations.

python docs/catalogue.py docs/toybox-words.md     update the catalogue between the marks of the page
"""

import sys
from pathlib import Path

from threedgen.toybox.world.grammar import ACCESSORIES, COLOURS, NOUNS, SIZES, WORDINGS, Noun, Spec, caption, held_out
from threedgen.toybox.world.toybox import Toybox

BEGIN, END = "<!-- catalogue: written by docs/catalogue.py -->", "<!-- end of the catalogue -->"
SIZE_WORDS = {
    "small": "about three fifths of the usual radius",
    "large": "fills the ball",
    "tall": "stretched upwards by 1.4",
    "wide": "stretched sideways by 1.4",
}


def markdown() -> str:
    """Return all sections of the catalogue."""
    return "\n\n".join([_summary(), _nouns(), _words(), _wordings(), _split()]) + "\n"


def update(page: str) -> str:
    """Return the page with a new catalogue between its marks. Raises ValueError if it has no marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page should hold the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{markdown()}\n{END}{after}"


def combinations() -> list[Spec]:
    """Return every combination of noun, colour, and part or accessory."""
    return [
        Spec(noun.word, colour, "", part)
        for noun in NOUNS.values()
        for colour in COLOURS
        for part in noun.parts + noun.wears
    ]


def families() -> dict[str, list[Noun]]:
    """Group the nouns by family, both in the order of the code."""
    found: dict[str, list[Noun]] = {}
    for noun in NOUNS.values():
        found.setdefault(noun.family, []).append(noun)
    return found


def _summary() -> str:
    parts = {part for noun in NOUNS.values() for part in noun.parts}
    return (
        f"{len(NOUNS)} nouns in {len(families())} families, {len(COLOURS)} colours, "
        f"{len(parts)} recolourable parts, {len(ACCESSORIES)} accessories, {len(SIZES) - 1} sizes, {WORDINGS} wordings."
    )


def _nouns() -> str:
    lines = ["### Nouns", "", f"Nouns in *italics* have no front. All accessories: {', '.join(ACCESSORIES)}."]
    for family, nouns in families().items():
        dressed = any(noun.wears for noun in nouns)
        titles = ["noun", "with ...", "wearing ..."] if dressed else ["noun", "with ..."]
        lines += ["", f"**{family}**", "", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        for noun in nouns:
            cells = [noun.word if noun.front else f"*{noun.word}*", ", ".join(noun.parts) or "-"]
            lines.append(f"| {' | '.join([*cells, _wears(noun)] if dressed else cells)} |")
    return "\n".join(lines)


def _wears(noun: Noun) -> str:
    """List the accessories of a noun, or the missing ones if they are few: `all but belt`."""
    missing = [name for name in ACCESSORIES if name not in noun.wears]
    if len(missing) > 3:
        return ", ".join(noun.wears) or "-"
    return f"all but {', '.join(missing)}" if missing else "all"


def _words() -> str:
    colours = [f"| {name} | {', '.join(f'{c:.2f}' for c in value)} |" for name, value in COLOURS.items()]
    sizes = [f"| {word} | {SIZE_WORDS.get(word, '')} |" for word in SIZES if word]
    return "\n".join(
        ["### Colours", "", "| word | centre, sRGB |", "|---|---|", *colours]
        + ["", "### Sizes", "", "| word | meaning |", "|---|---|", *sizes]
    )


def _wordings() -> str:
    full, bare = Spec("dog", "blue", "small", "hat", "red"), Spec("car", "yellow")
    texts = [caption(spec, wording) for spec in (full, bare) for wording in range(WORDINGS)]
    return "\n".join(["### Wordings", "", *(f"- {text}" for text in dict.fromkeys(texts))])


def _split() -> str:
    every = combinations()
    kept = [spec for spec in every if held_out(spec)]
    examples = [caption(Toybox(0, "held-out").spec(index)[0]) for index in range(6)]
    return "\n".join(
        ["### Held out", ""]
        + [f"{len(kept)} of {len(every)} combinations ({100 * len(kept) / len(every):.1f} %), such as", ""]
        + [f"- {text}" for text in examples]
    )


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(update(path.read_text(encoding="utf-8")), encoding="utf-8")
