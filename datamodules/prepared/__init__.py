"""The prepared data set on disk: Arrow shards of encoded documents and a manifest.

`layout` packs a token into five bytes, `rows` lays documents out in record batches, `writer` and `shard`
write and read one file of them, `index` finds and checks what is in it; `manifest` says what a data set
of many holds, `assembly` makes and verifies one; `source` is what training reads. No part needs the
pipeline; `source` alone needs torch, so it is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.prepared.assembly import read_tokenizer, verify, write_manifest
    from datamodules.prepared.index import DamagedDataError
    from datamodules.prepared.layout import PackingError, TokenLayout
    from datamodules.prepared.manifest import Manifest
    from datamodules.prepared.shard import Shard
    from datamodules.prepared.source import PreparedSource
    from datamodules.prepared.writer import ShardWriter

_HOMES = {
    "DamagedDataError": "index",
    "Manifest": "manifest",
    "PackingError": "layout",
    "PreparedSource": "source",
    "Shard": "shard",
    "ShardWriter": "writer",
    "TokenLayout": "layout",
    "read_tokenizer": "assembly",
    "verify": "assembly",
    "write_manifest": "assembly",
}

__all__ = [
    "DamagedDataError",
    "Manifest",
    "PackingError",
    "PreparedSource",
    "Shard",
    "ShardWriter",
    "TokenLayout",
    "read_tokenizer",
    "verify",
    "write_manifest",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it offers {__all__}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
