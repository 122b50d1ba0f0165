"""Entry of the `onn` command: find the verb, import its file, turn its errors into one line.

Notable:
- Only the standard library is imported before the verb is known: `onn --help` needs no torch.
- Exit codes: 0 done, 1 the run failed, 2 the command line or a config is wrong, 3 another rank died, hangs or
  failed, 130 interrupted, 143 terminated.
- An error that somebody foresaw is one line; a bug keeps its traceback. `--debug` (or `ONN_DEBUG=1`)
  keeps every traceback.
- The current folder is importable (last on the path), so that a `class_path` may name a file that
  lies next to the config.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from onn_lightning import __version__
from onn_lightning.cli import fetch
from onn_lightning.cli.errors import EXIT_INTERRUPTED, EXIT_USAGE, UsageError, foreseen, nearest


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Args:
        module: file that implements it, with a function `main(arguments) -> exit code`.
        help: one line for `onn --help`.
        takes_verb: whether `main` wants the verb in front of the arguments (Lightning's own verbs
            share one file).
    """

    module: str
    help: str
    takes_verb: bool = False


_LIGHTNING = "onn_lightning.cli.lightning_cli"
VERBS = {
    "fetch": Verb("onn_lightning.cli.fetch", "obtain the data of a bundled config"),
    "prepare": Verb("onn_lightning.cli.prepare", "raw corpora -> a prepared data set"),
    "inspect": Verb("onn_lightning.cli.inspect", "what the batches of a config really hold"),
    "tokenizer": Verb("onn_lightning.cli.tokenizer", "characters and words: build, report, encode, decode"),
    "estimate": Verb("onn_lightning.cli.estimate", "what a config needs: parameters, memory, tokens a day"),
    "fit": Verb(_LIGHTNING, "train a model", takes_verb=True),
    "validate": Verb(_LIGHTNING, "one pass over the validation data", takes_verb=True),
    "test": Verb(_LIGHTNING, "held-out results of a trained model", takes_verb=True),
    "predict": Verb(_LIGHTNING, "predictions of a trained model", takes_verb=True),
    "grow": Verb("onn_lightning.cli.grow", "make a trained model larger without changing what it does"),
    "prune": Verb("onn_lightning.cli.prune", "cut a trained model back to a budget; the emergency brake"),
    "export": Verb("onn_lightning.cli.export", "the weights as safetensors, for exchange"),
    "report": Verb("onn_lightning.cli.report", "one HTML page of a run"),
    "generate": Verb("onn_lightning.cli.generate", "answer from text, images and sound"),
}


def help_text() -> str:
    """What `onn --help` prints."""
    lines = [
        "usage: onn VERB [options]",
        "",
        "Trains one omni-modal tower (text, images, sound) from random weights.",
        "",
        "verbs:",
        *(f"  {name:<10}{verb.help}" for name, verb in VERBS.items()),
        "",
        "options:",
        "  -h, --help  this page; `onn VERB --help` for a verb's options",
        "  --version   print the version",
        "  --debug     full traceback on any error (also: ONN_DEBUG=1)",
        "",
        "examples:",
        "  onn fit --config quickstart.yaml",
        "  onn fit --config quickstart.yaml --trainer.max_steps 100 --run short",
        "  onn test --config quickstart.yaml",
    ]
    return "\n".join(lines) + "\n"


def find_verb(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Split the arguments into the verb and what belongs to it.

    Raises:
        UsageError: if there is no verb or an unknown one; names the nearest.
    """
    for place, argument in enumerate(argv):
        if argument.startswith("-"):
            continue
        if argument not in VERBS:
            hint = nearest(argument, VERBS)
            raise UsageError(f"unknown verb '{argument}'{hint}; verbs: {', '.join(VERBS)}")
        if place:
            raise UsageError(f"options come after the verb: onn {argument} {' '.join(argv[:place])} ...")
        return argument, list(argv[1:])
    raise UsageError(f"no verb given; verbs: {', '.join(VERBS)} (`onn --help` explains)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `onn` command.

    Args:
        argv: the arguments after the program's name; None: those of the process.
    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--debug" in arguments:
        arguments.remove("--debug")
        os.environ["ONN_DEBUG"] = "1"  # the processes that a distributed run starts must see it too
    if arguments and arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(help_text())
        return 0
    if arguments and arguments[0] == "--version":
        sys.stdout.write(f"onn_lightning {__version__}\n")
        return 0
    return _reporting_errors(lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    name, rest = find_verb(arguments)
    verb = VERBS[name]
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    run: Callable[[list[str]], int] = import_module(verb.module).main
    return run([name, *rest] if verb.takes_verb else rest)


def _reporting_errors(run: Callable[[], int]) -> int:
    try:
        return run()
    except KeyboardInterrupt:
        sys.stderr.write("onn: interrupted\n")
        return EXIT_INTERRUPTED
    except SystemExit as exit_:  # argparse prints its help and errors itself
        return exit_.code if isinstance(exit_.code, int) else (0 if exit_.code is None else EXIT_USAGE)
    except Exception as error:
        report = foreseen(error)
        if report is None or os.environ.get("ONN_DEBUG"):
            raise
        sys.stderr.write(f"onn: error: {report.line}{fetch.hint(report.line)}\n")
        return report.exit_code
