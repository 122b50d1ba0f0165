"""The network: torch only, no Lightning, no data loading.

Letters of the shape comments, the same in every file:
B rows of a batch, T tokens of a row, D hidden size, H heads, d channels of a head, N neurons of an
SBL, F neurons of the first MoIE layer, M tokens flattened over rows, V symbols, E width of a table.
"""

from onn_lightning.nn.attention import DynSIHA, KVCache
from onn_lightning.nn.embedding import PatchEmbedder, TextEmbedder, scatter_embeddings
from onn_lightning.nn.heads import CharacterHead, PatchRegressionHead
from onn_lightning.nn.moie import MoIE
from onn_lightning.nn.rope import AdditivePositions, YarnScaling
from onn_lightning.nn.sbl import SBLForm, SparseBayesianLinear
from onn_lightning.nn.trunk import MoIETrunk, TrunkAuxiliary, TrunkConfig, TrunkOutput

__all__ = [
    "AdditivePositions",
    "CharacterHead",
    "DynSIHA",
    "KVCache",
    "MoIE",
    "MoIETrunk",
    "PatchEmbedder",
    "PatchRegressionHead",
    "SBLForm",
    "SparseBayesianLinear",
    "TextEmbedder",
    "TrunkAuxiliary",
    "TrunkConfig",
    "TrunkOutput",
    "YarnScaling",
    "scatter_embeddings",
]
