"""A small corpus of several kinds, with copies and damages; `onn prepare` as a process of its own."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
CHINESE = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏云腾致雨露结为霜"
ENGLISH = ["the", "of", "and", "sea", "ship", "whale", "captain", "deck", "sail", "storm", "island", "crew"]


def prose(numbers: random.Random) -> str:
    """Some lines of nonsense in Chinese or English."""
    if numbers.random() < 0.5:
        words = ["".join(numbers.choices(CHINESE, k=numbers.randint(4, 12))) for _ in range(40)]
        return "，".join(words) + "。"
    return " ".join(numbers.choices(ENGLISH, k=120)) + "."


def write_corpus(folder: Path, documents: int = 150) -> None:
    """JSON Lines with copies and broken lines, text files, images with captions.

    Args:
        folder: to make.
        documents: lines of JSON; a few of everything else.
    """
    numbers = random.Random(7)
    lines: list[str] = []
    texts: list[str] = []
    for number in range(documents):
        if number % 50 == 17:
            lines.append('{"text": "broken')
            continue
        text = numbers.choice(texts) if number % 9 == 5 else prose(numbers)
        texts.append(text)
        lines.append(json.dumps({"text": text if number % 11 else "short"}, ensure_ascii=False))
    (folder / "texts").mkdir(parents=True)
    (folder / "images").mkdir()
    (folder / "pages.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for number in range(12):
        (folder / "texts" / f"{number}.txt").write_text(prose(numbers), encoding="utf-8")
        image = io.BytesIO()
        Image.frombytes("L", (20, 20), numbers.randbytes(400)).save(image, "PNG")
        (folder / "images" / f"{number}.png").write_bytes(image.getvalue())
        (folder / "images" / f"{number}.txt").write_text(f"picture {number}")
    (folder / "words.txt").write_text("天地 9\n宇宙 8\nwhale 7\nsea 6\n", encoding="utf-8")


def config_of(corpus: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A config whose corpus makes about a dozen tasks."""
    readers = "datamodules.prepare.readers"
    files = {"path": str(corpus / "pages.jsonl"), "unit_bytes": 15_000}
    texts = {"path": str(corpus / "texts"), "unit_bytes": 3_000}
    return {
        "output": str(output),
        "sources": {
            "pages": {"class_path": f"{readers}.JsonLinesReader", "init_args": files},
            "texts": {"class_path": f"{readers}.TextReader", "init_args": texts},
            "images": {
                "class_path": f"{readers}.MediaFolderReader",
                "init_args": {"path": str(corpus / "images")},
            },
        },
        "filters": [{"class_path": "datamodules.prepare.filters.length.LengthFilter"}],
        "deduplication": {"num_buckets": 3},
        "tokenizer": {"words": str(corpus / "words.txt")},
        "executor": {
            "class_path": "datamodules.prepare.executors.LocalExecutor",
            "init_args": {"workers": 2},
        },
        "task_bytes": 15_000,
        "shard_bytes": 30_000,
        **changes,
    }


def start(config: dict[str, Any], *flags: str, **options: Any) -> subprocess.Popen[str]:
    """Run `onn prepare` in a process group of its own.

    Args:
        config: written beside the output.
        flags: more arguments.
        options: for `subprocess.Popen`.
    """
    path = Path(config["output"]).with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-m", "onn_lightning", "prepare", "--config", str(path), *flags],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def finished(run: subprocess.Popen[str], seconds: float = 60) -> tuple[int, str, str]:
    """Wait for a run: exit code, stdout, stderr."""
    try:
        out, err = run.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        raise
    assert "Traceback" not in err, err
    return run.returncode, out, err


def prepare(config: dict[str, Any], *flags: str) -> tuple[int, str, str]:
    """Run `onn prepare` to its end: exit code, stdout, stderr."""
    return finished(start(config, *flags))


def error_line(err: str) -> str:
    """The one line that says what went wrong."""
    lines = [line for line in err.splitlines() if line.startswith("onn: ")]
    assert len(lines) == 1, err
    return lines[0].removeprefix("onn: error: ")


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
