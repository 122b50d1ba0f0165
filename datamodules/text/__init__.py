"""Text as a modality: characters with causal word ids.

`inventory` builds the characters, `vocabulary` encodes them; `words` reads word lists, `spelling`, `trie`,
`hashing` and `forward` are the compiled loops, `segmentation` puts them together; `tokenizer` is the
public face, `modality` what the tower sees; `corpus` counts what a tokenizer makes of a corpus. The
modality needs torch, so it is imported when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from datamodules.text.tokenizer import DualTokenizer

if TYPE_CHECKING:
    from datamodules.text.modality import TextModality

__all__ = ["DualTokenizer", "TextModality"]


def __getattr__(name: str) -> Any:
    if name == "TextModality":
        from datamodules.text.modality import TextModality

        return TextModality
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
