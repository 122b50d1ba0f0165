"""Padding with the defaults of `OmniDataModule` on documents of mixed lengths."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from numbered import Documents, Numbered

from datamodules.omni import OmniDataModule


@pytest.mark.parametrize("median", [30, 100, 300, 1000, 3000])
@pytest.mark.parametrize("sigma", [0.7, 1.5])
def test_padding_is_below_three_per_cent_on_log_normal_lengths(median: int, sigma: float) -> None:
    lengths = np.random.default_rng(0).lognormal(np.log(median), sigma, 3000)
    source = Documents(np.clip(lengths.astype(int), 1, 4000).tolist())
    module = OmniDataModule([Numbered()], {"mixed": source})
    module.setup("fit")
    batches = list(islice(module.train_dataloader(), 40))
    used = sum(batch.num_tokens for batch in batches) / sum(batch.modality_ids.numel() for batch in batches)
    assert 1 - used <= 0.03
