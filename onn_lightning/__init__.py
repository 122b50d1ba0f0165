"""onn_lightning: one omni-modal tower, trained from random weights on PyTorch Lightning.

Notable: the public names are imported on first use, so that `import onn_lightning` (and with it
`onn --help`) does not pay for torch and lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onn_lightning.batch import Batch, Segment
    from onn_lightning.modality import Modality
    from onn_lightning.module import OmniModule

__version__ = "0.1.0"
__all__ = ["Batch", "Modality", "OmniModule", "Segment", "__version__"]

_HOME = {
    "Batch": "onn_lightning.batch",
    "Modality": "onn_lightning.modality",
    "OmniModule": "onn_lightning.module",
    "Segment": "onn_lightning.batch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'onn_lightning' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
