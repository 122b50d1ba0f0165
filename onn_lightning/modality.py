"""`Modality`: everything a new kind of data needs, in one class, in one file.

Three methods are required - `encode`, `build_embedder`, `build_head` - and the class is chosen in
YAML by `class_path` / `init_args`; nothing is registered anywhere else.

Notable:
- `encode` runs in loader workers on the CPU and sees no model.
- An instance remembers the arguments it was made with, so that a checkpoint can describe it as
  plain data and make it again without unpickling anything.
- Two answers serve the loader: what a segment costs (`pixels`), and which settings its tokens depend on
  (`fingerprint`). Their defaults suit most modalities.
- A head returns one loss per supervised token; `HeadOutput` adds the statistics that the health
  score needs (entropy of the prediction) and that held-out figures need (bytes, hits).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from onn_lightning.batch import Segment


@dataclass(frozen=True)
class HeadOutput:
    """What a head returns when it has more to tell than the loss.

    Args:
        loss: [m] loss of each supervised token, nats where it is a likelihood.
        entropy: [m] entropy in nats of the predicted distribution, or None where there is none.
        correct: [m] bool, whether the most probable prediction is the target, or None.
        num_bytes: [m] UTF-8 bytes that each target stands for (0 for special symbols), or None.
    """

    loss: Tensor
    entropy: Tensor | None = None
    correct: Tensor | None = None
    num_bytes: Tensor | None = None


@dataclass(frozen=True)
class Preview:
    """Tokens of one modality as a person sees them.

    Args:
        text: [n] what each token writes, "" where a character is not complete yet; None: no text.
        word_starts: [n] whether a word begins at the token, or None: no words.
        picture: [height, width] (grey) or [height, width, 3] uint8, the first row on top, or None.
        caption: what the picture shows: its size, its duration.
    """

    text: tuple[str, ...] | None = None
    word_starts: tuple[bool, ...] | None = None
    picture: Tensor | None = None
    caption: str = ""


class Modality(ABC):
    """A kind of data: how it becomes tokens, how tokens enter the tower, how they are predicted.

    Subclasses set `name` (used in documents, batches, loss weights and logs).
    """

    name: str
    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Modality:
        instance = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        bound = signature.bind(instance, *args, **kwargs)
        bound.apply_defaults()
        instance.init_args = {}
        for key, value in list(bound.arguments.items())[1:]:
            if signature.parameters[key].kind is inspect.Parameter.VAR_KEYWORD:
                instance.init_args |= value  # **kwargs are arguments by their own names
            elif signature.parameters[key].kind is not inspect.Parameter.VAR_POSITIONAL:
                instance.init_args[key] = value
            elif value:
                raise TypeError(f"{cls.__name__} takes *{key}: a checkpoint needs a name for every argument")
        return instance

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), self.init_args  # copies and pickles (loader workers) call __new__ again

    @abstractmethod
    def encode(self, raw: Any) -> Segment:
        """Turn one raw item into tokens.

        Raises:
            BadSampleError: if the item is damaged; the message names it and the remedy.
        """

    @abstractmethod
    def build_embedder(self, hidden_size: int) -> nn.Module:
        """Module: features [n, ...] -> [n, hidden_size], inner positions already injected.

        Where segments carry `positions_2d`, the module is called with it as second argument.
        """

    @abstractmethod
    def build_head(self, hidden_size: int) -> nn.Module | None:
        """Module: (hidden [m, hidden_size], targets [m, ...]) -> loss [m] or `HeadOutput`.

        None: this modality is only read. A head with a method `tie_weights(embedder)` is given the
        modality's embedder once, right after both were built.
        """

    def opening_segment(self) -> Segment | None:
        """Tokens put before a document that begins with this modality (text: `<bos>`)."""
        return None

    def closing_segment(self) -> Segment | None:
        """Tokens put after a document that ends with this modality (text: `<eos>`)."""
        return None

    def placeholder(self) -> Segment | None:
        """Any few tokens, to show shapes and types where the data has no sample of this modality yet.

        None: it takes a sample (a source that grows must then hold one from the start).
        """
        return self.opening_segment()

    def pixels(self, segment: Segment) -> int:
        """What a segment takes of a batch's budget of pixels (cells of a spectrogram).

        By default the numbers in its features, and nothing for one without an inner geometry.
        """
        return 0 if segment.positions_2d is None else segment.features.numel()

    def preview(self, segment: Segment) -> Preview | None:
        """What the features of a run of tokens hold, made visible for `onn inspect`.

        Args:
            segment: tokens of one medium or stretch of text, as they stand in a batch.
        Returns:
            None: there is nothing better than the statistics of the numbers.
        """
        return None

    def fingerprint(self) -> dict[str, Any]:
        """The settings that decide which tokens a raw item becomes, as plain data.

        A place in the data counts tokens: it can be gone on from only where these are the same. By
        default all arguments.
        """
        return {
            name: value if value is None or isinstance(value, bool | int | float | str) else str(value)
            for name, value in self.init_args.items()
        }

    def table_origins(self, previous: Modality) -> Mapping[str, Tensor]:
        """Where the rows of the embedder's tables come from when this modality takes the place of another.

        Args:
            previous: the one that the tables were trained with.
        Returns:
            By the name of the parameter inside the embedder [rows] int64: the row of the previous table that
            each row continues (several may continue the same one), -1: a new row, which begins as the mean
            of the old ones. Tables that are not named stay as they are.
        Raises:
            ValueError: if something that was in a table has no row any more.
        """
        return {}

    def assets(self) -> dict[str, bytes]:
        """Files this instance depends on beyond `init_args`, by name; kept inside checkpoints."""
        return {}

    @classmethod
    def from_assets(cls, init_args: dict[str, Any], assets: dict[str, bytes]) -> Modality:
        """Make an instance again from what a checkpoint holds."""
        if assets:
            raise TypeError(
                f"{cls.__name__} was saved with files {sorted(assets)} but does not override `from_assets`"
            )
        return cls(**init_args)


class BadSampleError(ValueError):
    """A raw item cannot be used: the message says what, where and what to do.

    Loaders skip, count and name such items; everything else raises through.
    """
