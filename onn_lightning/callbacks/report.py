"""What a run shows at its end: held-out results, sample answers, charts, and where everything is.

Notable:
- Answers come from held-out documents: everything before the last text is the prompt; of a document
  that is text alone, its first characters.
- There are none where the weights are sharded: one rank, which prints them, has only its part.
- Results and answers are also written to the run folder, `results.json` and `samples.json`, for
  `onn report`.
- The charts are those that `Dashboard` left in the run folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch.distributed.tensor import DTensor

from onn_lightning.dashboard.job import CORE_METRICS, NEURONS
from onn_lightning.document import Document
from onn_lightning.modality import BadSampleError
from onn_lightning.run_report.samples import Sample, prompt_item, save_results, save_samples


class RunReport(Callback):
    """Prints results and answers when fitting or testing ends, and where the charts are.

    Args:
        answers: sample answers a source.
        prompt_length: characters of a text document that are given.
        max_new_tokens: length of an answer.
    """

    def __init__(self, answers: int = 2, prompt_length: int = 32, max_new_tokens: int = 48) -> None:
        self.answers, self.prompt_length, self.max_new_tokens = answers, prompt_length, max_new_tokens

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation figures, answers, charts, places."""
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        console, folder = Console(), Path(trainer.default_root_dir)
        self._print_results(console, trainer, "val")
        self._print_answers(console, trainer, pl_module, "validation")
        console.print(f"run folder  {folder}", highlight=False)
        charts = [str(folder / name) for name in (CORE_METRICS, NEURONS) if (folder / name).is_file()]
        if charts:
            console.print(f"charts      {'  '.join(charts)}", highlight=False)
        if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            console.print(f"live        tensorboard --logdir {folder}", highlight=False)
        checkpoint = getattr(trainer.checkpoint_callback, "last_model_path", "")
        if checkpoint:
            console.print(f"checkpoint  {checkpoint}", highlight=False)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test figures and answers."""
        if trainer.is_global_zero:
            console = Console()
            self._print_results(console, trainer, "test")
            self._print_answers(console, trainer, pl_module, "test")

    def _print_results(self, console: Console, trainer: Trainer, stage: str) -> None:
        rows: dict[str, dict[str, float]] = {}
        for key, value in trainer.callback_metrics.items():
            if key.startswith(f"{stage}/") and key.count("/") == 2:
                _, source, figure = key.split("/")
                rows.setdefault(source, {})[figure] = float(value)
        if not rows:
            return
        save_results(Path(trainer.default_root_dir), stage, _model(trainer), rows)
        losses = sorted({figure for row in rows.values() for figure in row if figure.endswith("_loss")})
        figures = ("exact_match", "bits_per_byte", "accuracy", *losses)
        table = Table(title=f"held-out results ({stage})")
        for heading in ("source", *figures):
            table.add_column(heading.replace("_", " "), justify="left" if heading == "source" else "right")
        for source, values in rows.items():
            table.add_row(source, *(f"{values[f]:.3f}" if f in values else "" for f in figures))
        console.print(table)

    def _print_answers(self, console: Console, trainer: Trainer, module: Any, split: str) -> None:
        if "text" not in module.modalities or not self.answers:  # answers are text
            return
        if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
            console.print("answers     none: the weights are sharded; onn generate reads the checkpoint")
            return
        sources = getattr(getattr(trainer, "datamodule", None), "splits", {}).get(split, {})
        training = module.training
        module.eval()
        samples = []
        for name, source in sources.items():
            for number in range(min(self.answers, len(source))):
                index = number * len(source) // self.answers  # spread over the source
                try:
                    prompt, expected = self._split(source[index])
                    answer = module.generate(prompt, max_new_tokens=self.max_new_tokens)
                    items = tuple(prompt_item(item, module.modalities) for item in prompt)
                    samples.append(Sample(name, items, answer, expected))
                except BadSampleError as error:
                    samples.append(Sample(name, (), trouble=str(error)))
                    answer, expected, prompt = f"(skipped: {error})", "", []
                shown = " ".join(str(item[1]) if item[0] == "text" else f"<{item[0]}>" for item in prompt)
                line = f"[bold]{escape(name)}[/]  {escape(repr(shown))} -> {escape(repr(answer))}"
                console.print(
                    line + (f"   (is {escape(repr(expected))})" if expected else ""), highlight=False
                )
        module.train(training)
        if samples:
            stage = "val" if split == "validation" else split
            save_samples(Path(trainer.default_root_dir), stage, _model(trainer), samples)

    def _split(self, document: Document) -> tuple[Document, str]:
        if len(document) > 1 and document[-1][0] == "text":
            return document[:-1], document[-1][1]
        if document[0][0] == "text":
            return [("text", document[0][1][: self.prompt_length])], ""
        return document, ""


def _model(trainer: Trainer) -> str:
    """Which model is loaded, in words."""
    if trainer.state.fn == "fit":
        return f"step {trainer.global_step:,}"
    return Path(trainer.ckpt_path).name if trainer.ckpt_path else "as it was given"
