"""The entrance of the tower: every modality becomes vectors of one width in one sequence.

Notable:
- text: character + causal word + previous word (+ hashed last 2 and last 3 characters), summed; image
  and audio: the projected patch, rotated by its 2-D position. The global 1-D position is added to all
  of them alike, so inner geometry and outer order stay apart.
- Text tables may be narrower than the trunk (`embedding_size`), with one projection after the sum.
- `scatter_embeddings` runs each embedder once over exactly its own tokens and writes the result
  into the packed rows; padding stays zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from onn_lightning.batch import Batch
from onn_lightning.nn.rope import rotate_2d

EMBEDDING_STD = 0.5
"""Initial spread of every table: with three tables the sum has about unit variance."""


class TextEmbedder(nn.Module):
    """Sum of a character, a causal word, a previous-word and two hashed character-sequence embeddings.

    Args:
        vocab_size: rows of the character table.
        num_words: rows of the table of current words.
        word_vocab_size: rows of the table of previous words (lone characters keep ids of their own).
        hidden_size: width of the trunk.
        embedding_size: width of the tables; None: that of the trunk, without a projection.
        use_words: add the causal word.
        use_previous_words: add the word before it.
        ngram_buckets: rows of the tables of the last 2 and of the last 3 characters; 0: none.
    """

    def __init__(
        self,
        vocab_size: int,
        num_words: int,
        word_vocab_size: int,
        hidden_size: int,
        embedding_size: int | None = None,
        use_words: bool = True,
        use_previous_words: bool = True,
        ngram_buckets: int = 0,
    ) -> None:
        super().__init__()
        width = embedding_size or hidden_size
        self.character = nn.Embedding(vocab_size, width)
        self.word = nn.Embedding(num_words, width) if use_words else None
        self.previous_word = nn.Embedding(word_vocab_size, width) if use_previous_words else None
        self.bigram = nn.Embedding(ngram_buckets, width) if ngram_buckets else None
        self.trigram = nn.Embedding(ngram_buckets, width) if ngram_buckets else None
        for table in (self.character, *self._optional_tables()):
            if table is not None:
                nn.init.normal_(table.weight, std=EMBEDDING_STD)
        self.projection = nn.Linear(width, hidden_size, bias=False) if width != hidden_size else nn.Identity()
        if isinstance(self.projection, nn.Linear):
            nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """features [n, 3] int64 (character, word, previous word) -> [n, hidden_size].

        With `ngram_buckets` they are [n, 5]: the last two columns are buckets of the last 2, 3 characters.
        """
        embedded = self.character(features[:, 0])
        for column, table in enumerate(self._optional_tables(), start=1):
            if table is not None:
                embedded = embedded + table(features[:, column])
        return self.projection(embedded)

    def _optional_tables(self) -> tuple[nn.Embedding | None, ...]:
        return self.word, self.previous_word, self.bigram, self.trigram


class PatchEmbedder(nn.Module):
    """A linear projection of patch features, rotated by the patch's (x, y).

    Args:
        patch_dim: numbers in one patch.
        hidden_size: width of the trunk, divisible by 4.
        theta: base of the 2-D rotary frequencies.
    """

    def __init__(self, patch_dim: int, hidden_size: int, theta: float = 100.0) -> None:
        super().__init__()
        self.projection = nn.Linear(patch_dim, hidden_size)
        nn.init.normal_(self.projection.weight, std=patch_dim**-0.5)
        nn.init.zeros_(self.projection.bias)
        self.theta = theta

    def forward(self, features: Tensor, positions_2d: Tensor) -> Tensor:
        """features [n, patch_dim] of any float type, positions_2d [n, 2] -> [n, hidden_size]."""
        projected = self.projection(features.to(self.projection.weight.dtype))
        return rotate_2d(projected, positions_2d, self.theta)


def scatter_embeddings(batch: Batch, embedders: nn.ModuleDict, hidden_size: int) -> Tensor:
    """Embed every modality's tokens and place them into the rows.

    Args:
        batch: packed rows.
        embedders: one module a modality, by name.
        hidden_size: D.
    Returns:
        [B, T, D]; zero at padding.
    Raises:
        KeyError: if the batch holds a modality without an embedder.
    """
    rows, length = batch.positions.shape
    indices, embedded = [], []
    for name, tokens in batch.modalities.items():
        if name not in embedders:
            raise KeyError(f"batch holds modality '{name}', the model was built for {sorted(embedders)}")
        inputs = (tokens.features,) if tokens.positions_2d is None else (tokens.features, tokens.positions_2d)
        indices.append(tokens.indices)
        embedded.append(embedders[name](*inputs))
    values = torch.cat(embedded)  # [n, D]
    flat = values.new_zeros(rows * length, hidden_size)
    return flat.index_copy(0, torch.cat(indices), values).view(rows, length, hidden_size)
