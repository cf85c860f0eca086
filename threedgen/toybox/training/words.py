"""Word-level tokenizer of toybox priors. Its vocabulary is built from the captions of the toybox."""

import hashlib
from collections.abc import Iterator
from typing import Any

from threedgen.toybox.world import nouns, rooms  # noqa: F401  (nouns fills NOUNS)
from threedgen.toybox.world.grammar import ACCESSORIES, COLOURS, NOUNS, SIZES, WORDINGS, Spec, caption

PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unknown>"


def captions() -> Iterator[str]:
    """Yield texts that contain, together, all words of object captions and room captions."""
    colours, sizes = list(COLOURS), [s for s in SIZES if s]
    n = 0
    for entry in NOUNS.values():
        for part in ("", *entry.parts, *entry.wears):
            for wording in range(WORDINGS):
                n += 1
                colour, size = colours[n % len(colours)], sizes[n % len(sizes)]
                yield caption(Spec(entry.word, colour, size, part, colours[n % 7] if part else ""), wording)
    yield from ACCESSORIES
    yield from rooms.captions()


def train_tokenizer(max_tokens: int):
    """Build a tokenizer (transformers) with all toybox words. Token sequences are <start> ... <end>, with at most
    ``max_tokens`` tokens, and are padded with <pad>."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # <end> must not have id 2: CLIPTextModel then pools at the largest token id, not at <end>
    special = [PAD, UNKNOWN, START, END]
    tokenizer.train_from_iterator(captions(), trainers.WordLevelTrainer(special_tokens=special))
    ids = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        unk_token=UNKNOWN,
    )


def vocabulary_digest(tokenizer: Any) -> str:
    """Return a hash of all (token, id) pairs. A run can be resumed only while the hash stays the same."""
    return hashlib.blake2b(repr(sorted(tokenizer.get_vocab().items())).encode(), digest_size=8).hexdigest()
