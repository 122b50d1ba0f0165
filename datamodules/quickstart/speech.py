"""Spoken words with transcripts: English and Mandarin, synthesised in many voices.

Notable:
- Split by VOICE: the held-out voices are heard in no training clip. They were chosen apart from
  the training voices: variants that are almost copies of one another are not on both sides.
- A voice is a variant of eSpeak NG's formant model (vocal tract, pitch, breathiness) and speaks
  both languages, as a bilingual person would; robots, whispers and echoes are left out.
- The library reads its files from the unpacked archive, which lives only as long as the synthesis.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.quickstart.archives import Archive, QuickstartError
from datamodules.quickstart.part import Part, Workplace, captioned, write_documents

ENGLISH_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("yes", "water", "window", "music", "morning", "garden", "yellow", "orange", "tiger", "doctor"),
    *("paper", "river", "hello", "kitchen", "summer", "mountain", "coffee", "bicycle", "banana", "school"),
)
MANDARIN_WORDS = (
    *("零", "一", "二", "三", "四", "五", "六", "七", "八", "九"),
    *("你好", "谢谢", "月亮", "太阳", "苹果", "老师", "学生", "朋友", "中国", "北京"),
    *("音乐", "电话", "火车", "飞机", "蝴蝶", "早上", "晚饭", "大海", "森林", "花园"),
)


@dataclass(frozen=True)
class SpeechPlan:
    """What is said by whom, and how.

    Args:
        words: the words by eSpeak NG's name of the language.
        voices: variants of each split, by their file names in the library's data.
        prosodies: (words per minute, pitch 0..100) of each split; every voice says every word in each.
    """

    words: Mapping[str, Sequence[str]]
    voices: Mapping[str, Sequence[str]]
    prosodies: Mapping[str, Sequence[tuple[int, int]]]


QUICKSTART_PLAN = SpeechPlan(
    words={"en-us": ENGLISH_WORDS, "cmn": MANDARIN_WORDS},
    voices={
        "train": (
            *("f1", "f2", "f5", "Annie", "aunty", "grandma", "shelby", "steph"),
            *("m1", "m5", "m6", "m7", "m8", "Alex", "Denis", "Diogo", "Gene", "Jacky"),
            *("Mario", "boris", "grandpa", "max", "quincy", "travis"),
        ),
        "validation": ("f4", "pablo"),
        "test": ("f3", "belinda", "m2", "m4"),
    },
    prosodies={
        "train": ((150, 50), (165, 35), (190, 65), (215, 50)),
        "validation": ((160, 45), (200, 55)),
        "test": ((160, 45), (200, 55)),
    },
)

ARCHIVE = Archive(
    package="espeakng-loader",
    version="0.2.4",
    licence="eSpeak NG: GPL-3.0-or-later, run to make the sound, not part of the data; the archive "
    "holds no licence file, so its METADATA is kept",
    contents="the speech synthesiser eSpeak NG, with which the spoken words were made",
    checksums={
        "espeakng_loader-0.2.4-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl": (
            "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d"
        ),
        "espeakng_loader-0.2.4-py3-none-manylinux_2_28_aarch64.whl": (
            "d1e798141b46a050cdb75fcf3c17db969bb2c40394f3f4a48910655d547508b9"
        ),
        "espeakng_loader-0.2.4-py3-none-macosx_10_12_x86_64.whl": (
            "b77477ae2ddf62a748e04e49714eabb2f3a24f344166200b00539083bd669904"
        ),
        "espeakng_loader-0.2.4-py3-none-macosx_11_0_arm64.whl": (
            "d27cdca31112226e7299d8562e889d3e38a1e48055c9ee381b45d669072ee59f"
        ),
        "espeakng_loader-0.2.4-py3-none-win_amd64.whl": (
            "41f1e08ac9deda2efd1ea9de0b81dab9f5ae3c4b24284f76533d0a7b1dd7abd7"
        ),
        "espeakng_loader-0.2.4-py3-none-win_arm64.whl": (
            "d7a2928843eaeb2df82f99a370f44e8a630f59b02f9b0d1f168a03c4eeb76b89"
        ),
    },
    licence_files=("*.dist-info/METADATA",),
)

_LIBRARY_NAMES = {"win32": "espeak-ng.dll", "darwin": "libespeak-ng.dylib"}


def speech_part(plan: SpeechPlan = QUICKSTART_PLAN) -> Part:
    """`<split>/speech.jsonl` and its clips, `<split>/wav/<voice>/<language>_<word>_<rate>.wav`."""
    recipe = json.dumps({"version": 1, "plan": dataclasses.asdict(plan)}, ensure_ascii=False)
    return Part(
        name="speech",
        build=lambda workplace: _build(plan, workplace),
        recipe=recipe,
        archive=ARCHIVE,
        optional=True,
    )


def _build(plan: SpeechPlan, workplace: Workplace) -> dict[str, int]:
    unpacked = workplace.stage.parent / f"{workplace.stage.name}.library"
    shutil.rmtree(unpacked, ignore_errors=True)
    with zipfile.ZipFile(workplace.source) as wheel:
        wheel.extractall(unpacked)
    root = unpacked / "espeakng_loader"
    clips: list[dict[str, str | int]] = []
    counts: dict[str, int] = {}
    for split, voices in plan.voices.items():
        documents = []
        for voice in voices:
            if not (root / "espeak-ng-data" / "voices" / "!v" / voice).is_file():
                # The library itself would silently speak with its default voice.
                raise QuickstartError(f"eSpeak NG in {workplace.source} has no voice variant '{voice}'")
            (workplace.stage / split / "wav" / voice).mkdir(parents=True)
            for language, words in plan.words.items():
                for number, word in enumerate(words):
                    for rate, pitch in plan.prosodies[split]:
                        name = f"wav/{voice}/{language}_{number:02d}_{rate}_{pitch}.wav"
                        path = str(workplace.stage / split / name)
                        spoken = {"path": path, "voice": f"{language}+{voice}", "text": word}
                        clips.append({**spoken, "rate": rate, "pitch": pitch})
                        documents.append(captioned("audio", name, word))
        counts[split] = write_documents(workplace.stage / split / "speech.jsonl", documents)
    _synthesise(root, clips, request_path=unpacked / "request.json")
    shutil.rmtree(unpacked)
    return counts


def _synthesise(root: Path, clips: Sequence[Mapping[str, str | int]], request_path: Path) -> None:
    library = root / _LIBRARY_NAMES.get(sys.platform, "libespeak-ng.so")
    request = {"library": str(library), "data": str(root / "espeak-ng-data"), "clips": clips}
    request_path.write_text(json.dumps(request, ensure_ascii=False), encoding="utf-8")
    program = Path(__file__).with_name("synthesis.py")
    finished = subprocess.run(
        # -P: the program's folder must not become a place to import from.
        [sys.executable, "-P", str(program), str(request_path)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if finished.returncode == 0:
        return
    said = finished.stderr.strip().splitlines()
    why = said[-1] if said else "it said nothing"
    raise QuickstartError(
        f"speech synthesis failed with exit status {finished.returncode} ({why}). The speech data are made "
        f"by eSpeak NG out of the package {ARCHIVE.requirement}, built for Linux (glibc), macOS and Windows "
        "on 64-bit x86 and ARM; on another system make the data on one of these and copy the folder, or "
        "train without the speech source"
    )
