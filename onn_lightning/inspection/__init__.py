"""What a batch really holds, read back from the batch alone: for `onn inspect`.

`pieces` takes a batch apart, `counts` counts, `page` writes it as text, `sheet` draws it, `plain` makes it
JSON; `Inspector` takes the batches from a DataModule.
"""

from onn_lightning.inspection.counts import Totals
from onn_lightning.inspection.inspector import Inspected, Inspector

__all__ = ["Inspected", "Inspector", "Totals"]
