"""Which errors become one line of the command line, and what that line says.

Notable:
- Foreseen are: usage errors, damaged or missing files, Lightning's misconfiguration errors, and
  errors that a `raise` of ours (or of the user's own plug-in) stated. A ValueError out of the middle
  of another library is a bug until shown otherwise and keeps its traceback.
- An error of a loader worker arrives as text; its last line is the message.
- Standard library only: `onn --help` imports this file.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_RANK_LOST = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

# What torch says of a checkpoint, and what it means for whoever gave the file.
_OF_TORCH = {
    "Error(s) in loading state_dict": "the checkpoint does not fit the model of this config (the config.yaml "
    "in its run folder does)",
    "Weights only load failed": "the checkpoint is damaged or holds more than plain data, and is not loaded",
    "PytorchStreamReader failed": "the checkpoint is damaged",
}
_MAX_DETAIL = 200
_WORKER_TRACEBACK = "Original Traceback (most recent call last):"
_FOREIGN = tuple(
    os.path.join(sysconfig.get_path(kind), "") for kind in ("stdlib", "platstdlib", "purelib", "platlib")
)
_PACKAGE = Path(__file__).parents[1]
_OURS = (os.path.join(_PACKAGE, ""), os.path.join(_PACKAGE.parent / "datamodules", ""))


class UsageError(Exception):
    """The command line or a config is wrong; the message says what, where and what is nearest."""


class LostRankError(Exception):
    """Another rank of a distributed run cannot go on; the message names it."""


@dataclass(frozen=True)
class Report:
    """How the command line ends on an error.

    Args:
        line: the message, one line.
        exit_code: of the process.
    """

    line: str
    exit_code: int


def nearest(word: str, names: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the name most like `word`, or "" where none is alike."""
    names = list(names)
    found = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not found:
        by_lower_case = {name.lower(): name for name in names}
        found = [by_lower_case[near] for near in difflib.get_close_matches(word.lower(), by_lower_case, n=1)]
    return f" (did you mean '{found[0]}'?)" if found else ""


def one_line(text: object) -> str:
    """Any text with its line breaks and runs of spaces folded."""
    return " ".join(str(text).split())


def foreseen(error: BaseException) -> Report | None:
    """The one-line report of an error that somebody foresaw, None for a bug.

    Args:
        error: what reached the command line.
    """
    if isinstance(error, UsageError):
        return Report(one_line(error), EXIT_USAGE)
    if isinstance(error, LostRankError):
        return Report(one_line(error), EXIT_RANK_LOST)
    if isinstance(error, OSError) and error.filename is not None:
        return Report(one_line(f"{error.filename}: {error.strerror}"), EXIT_FAILED)
    if isinstance(error, (OSError, *_types_of_loaded_libraries())):
        return Report(_message(error), EXIT_FAILED)
    for beginning, meaning in _OF_TORCH.items():
        if str(error).startswith(beginning):
            detail = one_line(str(error).partition("\n")[2])[:_MAX_DETAIL]
            return Report(f"{meaning}: {detail}" if detail else meaning, EXIT_FAILED)
    if isinstance(error, (ValueError, RuntimeError, ImportError, TypeError)) and _stated_by_us(error):
        return Report(_message(error), EXIT_FAILED)
    return None


def _types_of_loaded_libraries() -> tuple[type[BaseException], ...]:
    """Errors that always state a user's mistake, of libraries that are too heavy to import here."""
    places = (
        ("onn_lightning.modality", "BadSampleError"),
        ("lightning.fabric.utilities.exceptions", "MisconfigurationException"),
    )
    return tuple(getattr(sys.modules[module], name) for module, name in places if module in sys.modules)


def _message(error: BaseException) -> str:
    text = str(error)
    if _WORKER_TRACEBACK in text:
        text = re.sub(r"^[\w.]+: ", "", text.strip().splitlines()[-1])
    return one_line(text) or type(error).__name__


def _stated_by_us(error: BaseException) -> bool:
    text = str(error)
    if _WORKER_TRACEBACK in text:
        files = re.findall(r'File "([^"]+)", line', text)
    else:
        files = list(_files(error.__traceback__))
    return bool(files) and (files[-1].startswith(_OURS) or not files[-1].startswith((*_FOREIGN, "<")))


def _files(traceback: TracebackType | None) -> Iterable[str]:
    while traceback is not None:
        yield traceback.tb_frame.f_code.co_filename
        traceback = traceback.tb_next
