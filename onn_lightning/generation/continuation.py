"""`generate`: a document in, the text that follows it out, piece by piece.

Notable:
- The document is read once into a KV cache; then one token a step.
- The continuation rule is that of training, where every item is segmented on its own: after a text
  item generation goes on with that item's text (its word ids are those of the whole string); after an
  empty text item, or one that is not text, it begins a text of its own.
- Mistakes are reported by the call itself, before the first piece is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from onn_lightning.batch import Segment
from onn_lightning.document import Document, encode_document
from onn_lightning.generation.sampling import Sampling, choose
from onn_lightning.generation.session import Session
from onn_lightning.generation.stopping import StopFilter
from onn_lightning.generation.writer import TEXT, TextWriter, writable_text
from onn_lightning.nn import TrunkConfig, YarnScaling

if TYPE_CHECKING:
    from onn_lightning.module import OmniModule


def generate(
    module: OmniModule,
    document: Document,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
) -> Iterator[str]:
    """Continue a document with text.

    Args:
        module: a model with a text modality.
        document: ("text", str), ("image", path or PIL image), ("audio", path or (samples, rate)) in any
            order; empty: a text from its beginning.
        max_new_tokens: end after so many tokens (a character outside the inventory takes one a byte).
        temperature: 0: greedy; above: sample from the distribution at this temperature.
        top_k: sample among this many of the most probable tokens.
        top_p: sample among the most probable tokens that add up to this probability.
        seed: of the randomness; None: a new one each time. The global random state is not touched.
        stop: text that ends generation; it is not part of what is yielded.
    Returns:
        Pieces of text, none empty, until the model ends the document, a stop string is complete or
        `max_new_tokens` is reached; close the iterator to end earlier.
    Raises:
        BadSampleError: for a damaged item or an unknown modality.
        ValueError: for a number out of range, a model that cannot write text, or a document that leaves
            too little of the context window (see `context_window`).
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: it must be at least 1")
    sampling = Sampling(temperature, top_k, top_p)
    stop_filter = StopFilter((stop,) if isinstance(stop, str) else stop)
    generator = _make_generator(seed)

    modality, head = writable_text(module)
    document = document or [(TEXT, "")]  # nothing to go on from: the opening of a text
    segments = encode_document(document, module.modalities, closed=False)
    last_name, last_raw = document[-1][:2]
    writer = TextWriter(modality, head, prefix=last_raw if last_name == TEXT else "")
    if not segments:
        raise ValueError("the document has no tokens to go on from: give it an item that is not empty")
    _check_window(module.trunk.config, sum(map(len, segments)), max_new_tokens)
    pieces = _pieces(Session(module), writer, segments, max_new_tokens, sampling, generator)
    return _until_stop(pieces, stop_filter)


def context_window(config: TrunkConfig) -> int:
    """Tokens for which the trunk's positions are made: the native window, times YaRN's factor."""
    if config.yarn is None:
        return YarnScaling.original_max_position
    return int(config.yarn.original_max_position * config.yarn.factor)


def _make_generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    elif 0 <= seed < 2**64:
        generator.manual_seed(seed)
    else:
        raise ValueError(f"seed is {seed}: it must be at least 0 and below 2**64")
    return generator


def _check_window(config: TrunkConfig, num_tokens: int, max_new_tokens: int) -> None:
    window = context_window(config)
    if num_tokens + max_new_tokens > window:
        raise ValueError(
            f"the document has {num_tokens} tokens; with max_new_tokens={max_new_tokens} that is more than "
            f"the context window of {window}: shorten one of them, or train with a larger trunk.yarn.factor"
        )


def _pieces(
    session: Session,
    writer: TextWriter,
    segments: Sequence[Segment],
    max_new_tokens: int,
    sampling: Sampling,
    generator: torch.Generator,
) -> Iterator[str]:
    """Text as it becomes complete; some pieces are empty."""
    for _ in range(max_new_tokens):
        logits = writer.logits(session.read(segments))
        char_id = choose(logits, writer.allowed, sampling, generator)
        if writer.is_end(char_id):
            break
        segments = [writer.token(char_id)]
        yield writer.text(char_id)
    yield writer.flush()


def _until_stop(pieces: Iterator[str], stop_filter: StopFilter) -> Iterator[str]:
    for piece in pieces:
        if passed := stop_filter.push(piece):
            yield passed
        if stop_filter.stopped:
            return
    if rest := stop_filter.flush():
        yield rest
