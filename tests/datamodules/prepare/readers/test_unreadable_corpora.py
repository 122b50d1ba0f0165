"""Folders and files that may not be read: tried by a process that is not root."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from reading import read_samples

from datamodules.prepare.readers import JsonLinesReader, MediaFolderReader, Reader, TextReader

NOBODY = 65534

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a child process of another user")


@pytest.fixture
def corpus() -> Iterator[Path]:
    """A folder that everybody may enter; `tmp_path` lies below one that only its owner may."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "sub").mkdir()
    for name in ("a.txt", "sub/b.txt"):
        (folder / name).write_text("x")
    (folder / "d.jsonl").write_text('{"text": "x"}\n')
    yield folder
    shutil.rmtree(folder)


def raised_as_nobody(act: Callable[[], object]) -> BaseException | None:
    """What an action raises in a child process without root's rights."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        raised: BaseException | None = None
        try:
            if os.geteuid() == 0:
                os.setuid(NOBODY)
            act()
        except BaseException as error:
            raised = error
        with os.fdopen(writing, "wb") as stream:
            stream.write(pickle.dumps(raised))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        data = stream.read()
    os.waitpid(child, 0)
    result: BaseException | None = pickle.loads(data)
    return result


@pytest.mark.parametrize("mode", [0, 0o644])  # without the right to enter, names alone can be read
@pytest.mark.parametrize("reader", [TextReader, MediaFolderReader])
def test_an_unreadable_folder_is_named_before_anything_is_read(
    corpus: Path, reader: Callable[[Path], Reader], mode: int
) -> None:
    assert raised_as_nobody(lambda: list(reader(corpus).plan())) is None
    (corpus / "sub").chmod(mode)
    error = raised_as_nobody(lambda: list(reader(corpus).plan()))
    assert isinstance(error, PermissionError)
    named = corpus / "sub" if mode == 0 else corpus / "sub" / "b.txt"
    assert f"'{named}' may not be read: change its permissions" in str(error)


@pytest.mark.parametrize("name", ["a.txt", "sub/b.txt"])
def test_an_unreadable_file_is_named_before_anything_is_read(corpus: Path, name: str) -> None:
    (corpus / name).chmod(0)
    for path in (corpus, corpus / name):
        error = raised_as_nobody(lambda path=path: list(TextReader(path).plan()))
        assert isinstance(error, PermissionError) and f"'{corpus / name}' may not be read" in str(error)


def test_a_file_that_becomes_unreadable_after_the_plan_is_named(corpus: Path) -> None:
    for path, reader in (
        (corpus / "a.txt", TextReader(corpus)),
        (corpus / "d.jsonl", JsonLinesReader(corpus)),
    ):
        units = list(reader.plan())
        path.chmod(0)
        error = raised_as_nobody(lambda reader=reader, units=units: list(reader.read(units[0], "s")))
        assert isinstance(error, PermissionError) and f"'{path}' may not be read" in str(error)
        path.chmod(0o644)
    assert len(read_samples(TextReader(corpus))) == 2
