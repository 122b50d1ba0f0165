"""`onn fit | validate | test | predict`: LightningCLI with bundled configs, one run folder and resume.

Notable:
- The modalities are written once, under `data`; the model is given the very same instances.
- `--config` takes a path or the name of a bundled config, several times; later ones override.
- A run lives in `<trainer.default_root_dir>/<run>/`, by default `runs/<name of the first config>/`.
  `fit --resume` (or `--ckpt_path last`) goes on from its newest complete checkpoint and starts
  afresh where there is none; the other verbs read that checkpoint unless told otherwise. Rank 0 decides
  which one that is (`newest.py`).
- Where a callback has reshaped the network in mid-run, or gone back to before a spike of the loss, everything
  is built anew around the checkpoint that it left, and trained on; a checkpoint of such a run decides about
  the model's shape (`reshaped_runs.py`).
- Checkpoints are written whole or not at all, and read without running anything out of them
  (`DurableCheckpointIO`), unless the config brings a CheckpointIO of its own.
- Every mistake in a config becomes a `UsageError` of one line (`explain.py`).
"""

from __future__ import annotations

import argparse
import gc
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch.distributed as dist
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from onn_lightning import __version__
from onn_lightning.callbacks.durable_io import with_durable_io
from onn_lightning.callbacks.graceful_stop import GracefulStop, with_quiet_loop
from onn_lightning.callbacks.rank_watchdog import RankWatchdog
from onn_lightning.checkpoint.complete import (
    CHECKPOINTS,
    is_complete,
    is_exported,
    newest_checkpoint,
    newest_intact_checkpoint,
)
from onn_lightning.checkpoint.going_on import GoesOnFrom
from onn_lightning.cli.allocator import keep_freed_memory
from onn_lightning.cli.config_files import bundled_list
from onn_lightning.cli.config_option import ConfigFile, first_outside_jsonargparse
from onn_lightning.cli.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, LostRankError, UsageError
from onn_lightning.cli.explain import explain
from onn_lightning.cli.model_building import builders
from onn_lightning.cli.newest import Agreement
from onn_lightning.cli.reshaped_runs import in_shape_of
from onn_lightning.cli.run_folder import (
    RUNS,
    SaveRunConfig,
    default_callbacks,
    default_loggers,
    in_order,
    with_guards,
)
from onn_lightning.cli.slurm import requeue_job

C = TypeVar("C")

_log = logging.getLogger("lightning.pytorch")  # shown on the terminal by Lightning, on rank 0


class OmniArgumentParser(LightningArgumentParser):
    """Parser that remembers which config files it read, for the place in an error message."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config_paths: list[Path] = []


def share_modalities(parser: LightningArgumentParser) -> None:
    """Give the model the very modalities that `data` defines; the parser has `data` and `model`."""
    parser.link_arguments(
        "data",
        "model.init_args.modalities",
        compute_fn=lambda data: data.modalities,
        apply_on="instantiate",
    )


class OmniCLI(LightningCLI):
    """One verb of the command line, parsed and run on construction.

    Args:
        arguments: the verb and what follows it.
        model_class: base class of `model`.
        data_class: base class of `data`; its instances have `modalities`.
    Raises:
        UsageError: if the command line or a config is wrong.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        model_class: type[LightningModule],
        data_class: type[LightningDataModule],
    ) -> None:
        self._verb = arguments[0]
        strict = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            model_class,
            data_class,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={"default_root_dir": RUNS},
            seed_everything_default=0,
            parser_class=OmniArgumentParser,
            parser_kwargs={"prog": "onn", **strict, self._verb: strict},
            auto_configure_optimizers=False,  # the optimizer is an argument of the model
            load_from_checkpoint_support=False,  # modalities are objects; the model describes itself
            args=list(arguments),
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the verb that was asked for: each parser costs time to build."""
        return {self._verb: LightningCLI.subcommands()[self._verb]}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Parser with our `--config`."""
        kwargs.setdefault("dump_header", [f"onn_lightning=={__version__}"])
        parser = self.parser_class(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=ConfigFile,
            help="YAML config: a path or the name of a bundled one; repeatable, later ones override",
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """`--run`, `--resume`, and the modalities' way from data to model."""
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="name of the run's folder in trainer.default_root_dir (default: name of the first config)",
        )
        if self._verb == "fit":
            parser.add_argument(
                "--resume",
                action="store_true",
                help="go on from the run's newest complete checkpoint; start afresh where there is none",
            )
        share_modalities(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; a mistake leaves as one line."""
        assert isinstance(args, list)
        verb_parser = cast(OmniArgumentParser, self._subcommand_parsers[self._verb])
        try:
            self.config = parser.parse_args(args)
        except argparse.ArgumentError as error:
            options = [name.lstrip("-") for action in verb_parser._actions for name in action.option_strings]
            line = explain(str(error), verb_parser.config_paths, args[1:], options)
            if not verb_parser.config_paths and "required" in line:
                line = f"no --config given ({bundled_list()}); {line}"
            raise UsageError(line) from error
        config = self.config[self._verb]
        if config.run is None:
            paths = verb_parser.config_paths
            config.run = paths[0].stem if paths else self._verb

    def _parse_ckpt_path(self) -> None:
        """Lightning would overwrite the model's config by what the checkpoint holds; ours stands."""

    @property
    def run_folder(self) -> Path:
        """Where this run's config, checkpoints and logs are."""
        config = self.config[self._verb]
        return Path(config.trainer.default_root_dir or RUNS) / config.run

    def before_instantiate_classes(self) -> None:
        """Settle the checkpoint before anything expensive is built."""
        config = self.config[self._verb]
        if config.weights_only is False:
            raise UsageError(
                "--weights_only false would run whatever code is in a checkpoint file: it is always true "
                "here; leave it out"
            )
        self._checkpoint = config.ckpt_path
        goes_on = config.ckpt_path is None and (self._verb != "fit" or config.resume)
        if config.ckpt_path not in (None, "last"):
            if is_exported(Path(config.ckpt_path)):
                raise UsageError(
                    f"--ckpt_path {config.ckpt_path}: this is an export: weights only, for `onn generate` "
                    "and OmniModule.load_from_checkpoint; name the training checkpoint that it was made of "
                    "(<run>/checkpoints/*.ckpt)"
                )
            if Path(config.ckpt_path).exists() and not is_complete(Path(config.ckpt_path)):
                raise ValueError(f"--ckpt_path {config.ckpt_path}: the checkpoint is damaged or incomplete")
        elif config.ckpt_path == "last" or goes_on:
            self._agree(self._newest)
        elif not config.trainer.fast_dev_run:
            self._agree(self._nothing)

    def _agree(self, choose: Callable[[], Path | None]) -> None:
        num_nodes = self.config[self._verb].trainer.num_nodes
        self._agreement = Agreement(choose, self.run_folder, num_nodes)
        chosen = self._agreement.checkpoint
        self._checkpoint = None if chosen is None else str(chosen)

    def _newest(self) -> Path | None:
        newest = newest_intact_checkpoint(self.run_folder)
        if newest is None and newest_checkpoint(self.run_folder) is not None:
            raise UsageError(
                f"every checkpoint in {self.run_folder / CHECKPOINTS} is damaged (checksums): bring "
                "an intact one back, or start anew under another name (--run)"
            )
        if newest is None and self._verb != "fit":
            raise UsageError(
                f"no checkpoint in {self.run_folder / CHECKPOINTS}: train first (onn fit), "
                "name the run (--run) or the file (--ckpt_path)"
            )
        return newest

    def _nothing(self) -> None:
        if newest_checkpoint(self.run_folder) is not None:
            raise UsageError(
                f"{self.run_folder} already holds a trained run: continue it with --resume, give this one "
                "another name with --run NAME, or delete that folder"
            )

    def instantiate_classes(self) -> None:
        """Build all; what a constructor says against its arguments arrives as it said it."""
        shaped = self.config.clone()
        shaped[self._verb] = in_shape_of(self._checkpoint, self.config[self._verb])
        try:
            self.config_init = self.parser.instantiate(
                shaped, instantiators=builders(shaped[self._verb].trainer.strategy)
            )
        except (ValueError, TypeError) as error:
            stated = first_outside_jsonargparse(error)
            if stated is error:
                raise
            raise stated from stated.__cause__
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with the run folder's loggers and callbacks where the config has none."""
        trainer = self.config_init[self._verb].trainer
        kwargs["default_root_dir"] = str(self.run_folder)
        if trainer.logger is None or trainer.logger is True:
            kwargs["logger"] = default_loggers(self.run_folder)
        given = trainer.callbacks or []
        given = given if isinstance(given, list) else [given]
        kwargs["plugins"] = with_durable_io(trainer.plugins, trainer.strategy)
        kwargs["callbacks"] = in_order([*with_guards(given), *default_callbacks(given, trainer.as_dict())])
        try:
            return with_quiet_loop(super().instantiate_trainer(**kwargs))
        except (ValueError, TypeError) as error:  # Lightning's own checks of the arguments
            raise UsageError(f"trainer: {error}") from error

    def fit(self, **kwargs: Any) -> None:
        """Train, from a checkpoint where there is one to go on from."""
        if self._checkpoint is None:
            _log.info("run folder: %s", self.run_folder)
        else:
            _log.info("run folder: %s, going on from %s", self.run_folder, self._checkpoint)
        self.trainer.fit(**self._with_checkpoint(kwargs))

    def validate(self, **kwargs: Any) -> None:
        """Validate a checkpoint."""
        self.trainer.validate(**self._with_checkpoint(kwargs))

    def test(self, **kwargs: Any) -> None:
        """Test a checkpoint."""
        self.trainer.test(**self._with_checkpoint(kwargs))

    def predict(self, **kwargs: Any) -> None:
        """Predict with a checkpoint."""
        self.trainer.predict(**self._with_checkpoint(kwargs))

    def _with_checkpoint(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, "ckpt_path": self._checkpoint, "weights_only": True}

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            while (checkpoint := self._run_until_stopped(subcommand)) is not None:
                self._build_anew(checkpoint)
        except SIGTERMException:
            if any(stop.requeue_is_due for stop in self._callbacks(GracefulStop)):
                requeue_job()
            raise SystemExit(EXIT_TERMINATED) from None
        except SystemExit:
            if self.trainer.interrupted:  # Lightning turns Ctrl-C into exit 1
                raise SystemExit(EXIT_INTERRUPTED) from None
            raise
        except Exception as error:
            verdicts = [watchdog.verdict for watchdog in self._callbacks(RankWatchdog) if watchdog.verdict]
            if verdicts:  # the error is only what became of it here
                raise LostRankError(verdicts[0].text) from error
            raise
        finally:
            self._release()
            if dist.is_initialized():  # else threads of gloo may outlive the interpreter, which then aborts
                dist.destroy_process_group()

    def _callbacks(self, kind: type[C]) -> list[C]:
        trainer = getattr(self, "trainer", None)  # there is none while all is built anew
        return [] if trainer is None else [it for it in trainer.callbacks if isinstance(it, kind)]

    def _release(self) -> None:
        """Threads and signals that belong to this trainer."""
        for stop in self._callbacks(GracefulStop):
            stop.close()
        for watchdog in self._callbacks(RankWatchdog):
            watchdog.close()

    def _run_until_stopped(self, subcommand: str) -> Path | None:
        try:
            super()._run_subcommand(subcommand)
        except GoesOnFrom as stopped:
            return stopped.checkpoint
        return None

    def _build_anew(self, checkpoint: Path) -> None:
        """Go on from a checkpoint that a callback has made, as a resumed run would."""
        self._checkpoint = str(checkpoint)
        self._release()
        del self.model, self.datamodule, self.trainer, self.config_init
        gc.collect()  # they refer to each other: the old network would stay in memory
        self._set_seed()
        self.instantiate_classes()


def main(arguments: list[str]) -> int:
    """Run one of Lightning's verbs.

    Args:
        arguments: the verb and what follows it.
    """
    from datamodules import OmniDataModule
    from onn_lightning.module import OmniModule

    return run(arguments, OmniModule, OmniDataModule)


def run(
    arguments: list[str], model_class: type[LightningModule], data_class: type[LightningDataModule]
) -> int:
    """Run a verb with the given base classes; see `OmniCLI`."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    # Lightning 2.6 asks torch a deprecated question once a loop; nothing that a user could mend
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    keep_freed_memory()
    OmniCLI(arguments, model_class, data_class)
    return 0


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage() and "litmodels" not in record.getMessage()
