"""Cached arrays: whole or absent, and never in the way."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from datamodules.text.cache import cache_folder, cached_arrays
from onn_lightning.compiled import kernel


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONN_CACHE_DIR", str(tmp_path / "deep" / "cache"))
    return cache_folder()


def built() -> dict[str, np.ndarray]:
    return {"numbers": np.arange(1000), "more": np.zeros((2, 3), dtype=np.int32)}


def never() -> dict[str, np.ndarray]:
    raise AssertionError("built although it is cached")


def test_arrays_are_built_once_and_leave_one_file(folder: Path) -> None:
    first = cached_arrays("name", built)
    second = cached_arrays("name", never)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert [file.name for file in folder.iterdir()] == ["name.npz"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "pickled"])
def test_a_damaged_file_is_built_again(folder: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    cached_arrays("name", built)
    file = folder / "name.npz"
    content = bytearray(file.read_bytes())
    if damage == "pickled":
        np.savez(file, numbers=np.array([{}], dtype=object))
    else:
        content[len(content) // 2] ^= 0xFF
        file.write_bytes({"truncated": content[:500], "flipped": content, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(cached_arrays("name", built)["numbers"], np.arange(1000))
    assert "building it again" in caplog.text
    cached_arrays("name", never)


def test_without_a_writable_folder_arrays_are_built_each_time(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be")
    assert "numbers" in cached_arrays("name", built)


def test_a_failed_write_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("os.fsync", disk_full)
        assert "numbers" in cached_arrays("name", built)
    assert list(folder.iterdir()) == []


def test_kernels_run_where_numba_can_write_no_cache() -> None:
    namespace: dict[str, object] = {}
    exec(
        compile("def double(x):\n    return 2 * x", "<nowhere>", "exec"), namespace
    )  # has no file to cache beside
    assert kernel(namespace["double"])(21) == 42
