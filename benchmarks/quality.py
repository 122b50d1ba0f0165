"""What the trunk and the entrance are worth, in held-out bits per byte on real text.

- trunk: MoIE/DynSIHA against transformers' Llama of equal training FLOPs: same tokens in the same order, same
  entrance, head and optimizer, each at its own best learning rate of the grid;
- entrance: characters only, + causal word, + previous word, same trunk.

Text is that of the quickstart (`onn fetch quickstart`): Chinese chapters and English plays, half of the
tokens each; held out by chapter and play. Every run sees the same batches, each text position at most once
while the texts last.

    python benchmarks/quality.py --part trunk --json
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.text import TextModality
from datamodules.text.vocabulary import CharacterVocabulary
from onn_lightning.flops import trunk_forward_flops
from onn_lightning.nn import AdditivePositions, MoIETrunk, TrunkConfig
from onn_lightning.optim import MuonAdamW, parameter_groups

LANGUAGES = ("zh", "en")
EMBEDDING_SIZE = 64


@dataclass(frozen=True)
class Corpus:
    """Encoded text: [n, 3] features of each language, for training and held out."""

    train: dict[str, Tensor]
    held_out: dict[str, Tensor]


def read_corpus(folder: Path, modality: TextModality, held_out: str = "validation") -> Corpus:
    """Encode the quickstart's texts, each file on its own, in the order of their names."""
    parts: dict[str, dict[str, Tensor]] = {"train": {}, held_out: {}}
    for split, encoded in parts.items():
        for language in LANGUAGES:
            files = sorted((folder / split / language).glob("*.txt"))
            if not files:
                raise FileNotFoundError(f"{folder / split / language}: no texts; run `onn fetch quickstart`")
            encoded[language] = torch.cat([modality.encode(file.read_text()).features for file in files])
    return Corpus(parts["train"], parts[held_out])


def corpus_vocabulary(data: Path, folder: Path) -> str:
    """Path of an inventory of just the characters of the training texts.

    Most of the 20k characters of the built-in one never occur here; the products over them would
    drown those of the trunks, which are to be compared.
    """
    texts = (file.read_text() for language in LANGUAGES for file in (data / "train" / language).glob("*.txt"))
    characters = sorted(set().union(*texts))
    path = folder / "tokenizer.json"
    path.write_bytes(CharacterVocabulary.from_characters(characters).to_json())
    return str(path)


def batches(corpus: Corpus, steps: int, rows: int, length: int, seed: int) -> Iterator[Tensor]:
    """[rows, length + 1, 3] windows: half of the rows of each language, shuffled, none twice in a pass."""
    generator = torch.Generator().manual_seed(seed)
    half = rows // 2
    starts: dict[str, Tensor] = {language: torch.empty(0, dtype=torch.long) for language in LANGUAGES}
    for _ in range(steps):
        windows = []
        for language, features in corpus.train.items():
            if len(starts[language]) < half:
                count = (len(features) - 1) // length
                starts[language] = torch.randperm(count, generator=generator) * length
            taken, starts[language] = starts[language][:half], starts[language][half:]
            windows += [features[start : start + length + 1] for start in taken.tolist()]
        yield torch.stack(windows)


class LlamaTrunk(nn.Module):
    """transformers' Llama between the same entrance and head, wide enough for the FLOPs of `config`.

    Its feed-forward size is the usual 8/3 of its width.
    """

    def __init__(self, config: TrunkConfig, length: int) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaModel

        target = trunk_forward_flops(config, length)
        self.width = min(
            range(32, 4096, 2 * config.num_heads), key=lambda w: abs(self.flops(w, config, length) - target)
        )
        self.model = LlamaModel(
            LlamaConfig(
                vocab_size=8,
                hidden_size=self.width,
                intermediate_size=round(self.width * 8 / 3),
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                max_position_embeddings=length,
                use_cache=False,
            )
        )

    @staticmethod
    def flops(width: int, config: TrunkConfig, length: int) -> float:
        """Forward FLOPs of one token."""
        return (
            config.num_layers * 2 * (4 * width**2 + 3 * width * round(width * 8 / 3) + 2 * width * length / 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        return self.model(inputs_embeds=x).last_hidden_state


class Model(nn.Module):
    """Entrance, trunk and head over text."""

    def __init__(self, modality: TextModality, config: TrunkConfig, dense: bool, length: int) -> None:
        super().__init__()
        self.trunk: Any = LlamaTrunk(config, length) if dense else MoIETrunk(config)
        width = self.trunk.width if dense else config.hidden_size
        self.dense = dense
        self.embedder, self.head = modality.build_embedder(width), modality.build_head(width)
        self.head.tie_weights(self.embedder)
        self.positions = AdditivePositions(width, config.rope_theta)
        self.flops = LlamaTrunk.flops(width, config, length) if dense else trunk_forward_flops(config, length)

    def forward(self, windows: Tensor) -> tuple[Any, Any]:
        """[B, T + 1, 3] -> (head output, trunk auxiliary or None)."""
        features, targets = windows[:, :-1], windows[:, 1:, 0]
        rows, length = targets.shape
        positions = torch.arange(length).expand(rows, length)
        x = self.embedder(features.flatten(0, 1)).view(rows, length, -1) + self.positions(positions)
        hidden, auxiliary = (self.trunk(x), None) if self.dense else _unpack(self.trunk(x, positions))
        return self.head(hidden.flatten(0, 1), targets.flatten()), auxiliary


def _unpack(output: Any) -> tuple[Tensor, Any]:
    return output.hidden, output.auxiliary


@torch.no_grad()
def evaluate(model: Model, corpus: Corpus, length: int, rows: int = 16) -> dict[str, float]:
    """Held-out bits per byte of each language, in windows as long as in training."""
    result = {}
    for language, features in corpus.held_out.items():
        windows = (
            features[: (len(features) - 1) // length * length + 1]
            .unfold(0, length + 1, length)
            .transpose(1, 2)
        )
        nats = num_bytes = 0.0
        for batch in windows.split(rows):
            output, _ = model(batch)
            nats += output.loss.double().sum().item()
            num_bytes += output.num_bytes.sum().item()
        result[language] = nats / math.log(2) / num_bytes
    result["mean"] = sum(result.values()) / len(result)
    return result


def run(
    arguments: argparse.Namespace, corpus: Corpus, modality: TextModality, lr: float, dense: bool = False
) -> dict[str, Any]:
    """Train one model on the main loss alone; returns its settings, figures and time."""
    torch.manual_seed(arguments.seed)
    heads = max(1, arguments.width // 32)
    config = TrunkConfig(arguments.width, arguments.layers, heads, rope_theta=10_000.0)
    model = Model(modality, config, dense, arguments.length)
    groups = parameter_groups(model)
    optimizer: torch.optim.Optimizer
    if arguments.optimizer == "muon":
        optimizer = MuonAdamW(groups, lr=lr)
    else:
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    warmup = arguments.steps // 20 + 1
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1, (step + 1) / warmup)
            * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / arguments.steps)))
        ),
    )
    start, activation = time.perf_counter(), math.nan
    for windows in batches(corpus, arguments.steps, arguments.rows, arguments.length, arguments.seed):
        output, auxiliary = model(windows)
        (output.loss.sum() / len(output.loss)).backward()
        if auxiliary is not None:
            activation = auxiliary.activation.mean().item()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return {
        "dense": dense,
        "lr": lr,
        "bits_per_byte": evaluate(model, corpus, arguments.length),
        "activation": activation,
        "trunk_mflops_per_token": model.flops / 1e6,
        "trunk_parameters": sum(p.numel() for p in model.trunk.parameters()),
        "seconds": time.perf_counter() - start,
    }


def best(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run of the fewest bits per byte."""
    return min(runs, key=lambda entry: entry["bits_per_byte"]["mean"])


def main() -> None:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("trunk", "entrance"), required=True)
    parser.add_argument("--data", type=Path, default=Path("data/quickstart"))
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--lr", type=float, nargs="+", default=[1.5e-3, 3e-3, 6e-3])
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()

    folder = tempfile.TemporaryDirectory()
    entrance = {
        "vocabulary": corpus_vocabulary(arguments.data, Path(folder.name)),
        "words": str(arguments.data / "words.txt"),
        "embedding_size": EMBEDDING_SIZE,
    }
    full = TextModality(**entrance)
    corpus = read_corpus(arguments.data, full)
    runs: list[dict[str, Any]] = []

    def record(name: str, modality: TextModality, **settings: Any) -> dict[str, Any]:
        runs.append({"name": name, **run(arguments, corpus, modality, **settings)})
        if not arguments.json:
            print(json.dumps(runs[-1]), flush=True)
        return runs[-1]

    summary: dict[str, Any] = {}
    if arguments.part == "trunk":
        moie = best([record("moie", full, lr=lr) for lr in arguments.lr])
        dense = best([record("dense", full, lr=lr, dense=True) for lr in arguments.lr])
        summary["moie_over_dense_bits_per_byte"] = (
            moie["bits_per_byte"]["mean"] / dense["bits_per_byte"]["mean"]
        )
        summary["moie_over_dense_flops"] = moie["trunk_mflops_per_token"] / dense["trunk_mflops_per_token"]
    else:
        lr = arguments.lr[len(arguments.lr) // 2]
        parts = {
            "characters": (False, False),
            "+ causal word": (True, False),
            "+ previous word": (True, True),
        }
        for name, (use_words, use_previous) in parts.items():
            modality = TextModality(**entrance, use_words=use_words, use_previous_words=use_previous)
            summary[name] = record(name, modality, lr=lr)["bits_per_byte"]
    if arguments.json:
        print(
            json.dumps(
                {
                    "summary": summary,
                    "runs": runs,
                    "steps": arguments.steps,
                    "threads": torch.get_num_threads(),
                },
                indent=1,
            )
        )
    else:
        print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
