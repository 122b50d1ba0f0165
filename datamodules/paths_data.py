"""`PathsDataModule`: what the specialised data modules have in common - corpora given by paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datamodules.corpora import Corpora, named_sources
from datamodules.omni import OmniDataModule
from datamodules.sources import Source
from onn_lightning.modality import Modality


class PathsDataModule(OmniDataModule):
    """`OmniDataModule` whose sources may be given by their paths alone.

    Args:
        modalities: the kinds of data of the run.
        source_at: makes the source of a path.
        train: a path, several, or sources by name.
        validation: sources of `onn validate` and of validation during training, given like `train`; each is
            evaluated on its own.
        test: sources of `onn test`.
        predict: sources of `onn predict`.
        settings: the other arguments of `OmniDataModule` (`row_length`, `num_workers`, ...).
    """

    def __init__(
        self,
        modalities: list[Modality],
        source_at: Callable[[str], Source],
        train: Corpora,
        validation: Corpora | None = None,
        test: Corpora | None = None,
        predict: Corpora | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            modalities=modalities,
            train=named_sources(train, source_at),
            validation=named_sources(validation, source_at),
            test=named_sources(test, source_at),
            predict=named_sources(predict, source_at),
            **settings,
        )
