"""`export`: the weights of a training checkpoint as safetensors and plain files, and the way back.

    FOLDER/
      model.safetensors                     or model-00001-of-00003.safetensors, ... with
      model.safetensors.index.json          "weight_map": which file holds which tensor
      config.json                           the description: trunk, modalities, history, checksums
      assets/0-TextModality/words.txt       what a modality needs: its vocabulary, its words

Notable:
- Tensor after tensor is read, written and let go: of the weights only one tensor is in memory at a time.
- Everything in it is plain data, and its readers execute nothing. No optimizer, no state of the run.
- The folder gets its name when all of it is on the disk.
- Tied tensors are stored once; `config.json` names the others.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from datamodules.prepared.durable import durable_stream, write_durably
from onn_lightning.checkpoint import description, folders
from onn_lightning.checkpoint.complete import EXPORTED
from onn_lightning.checkpoint.reading import CheckpointError, require_intact
from onn_lightning.checkpoint.sharded import memory_of, outline
from onn_lightning.checkpoint.tensor_stream import bytes_of, write_tensors

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        files: of weights.
        tensors: stored ones.
        num_bytes: of all weights.
    """

    files: int
    tensors: int
    num_bytes: int


def export(path: Path, folder: Path, max_file_bytes: float, dtype: torch.dtype | None = None) -> Exported:
    """Write the weights of a training checkpoint for exchange.

    Args:
        path: a checkpoint of ours, of either form.
        folder: to be made; there is none of its name.
        max_file_bytes: a file of weights is not made larger, unless by one tensor alone.
        dtype: type of the matrices; vectors and numbers keep theirs. None: as they are.
    Raises:
        CheckpointError: if the checkpoint is damaged, not ours, or of another format.
        FileExistsError: if the folder is there.
        OSError: if it cannot be written; then none of it is left.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: give another name")
    require_intact(path)
    checkpoint = description.read(path, mmap=True)
    beside = folders.hidden(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        made = _write(checkpoint, path, beside, max_file_bytes, dtype)
        folders.give_name(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return made


def _write(
    checkpoint: Mapping[str, Any],
    path: Path,
    folder: Path,
    max_file_bytes: float,
    dtype: torch.dtype | None,
) -> Exported:
    weights = checkpoint["state_dict"]
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    tied: dict[str, str] = {}
    names: dict[tuple[Any, ...], str] = {}
    for name, tensor in outline(weights).items():
        same = names.setdefault(memory_of(tensor), name)
        if same != name:
            tied[name] = same
        else:
            is_rounded = dtype is not None and tensor.ndim >= 2 and tensor.is_floating_point()
            shapes[name] = (dtype if dtype and is_rounded else tensor.dtype, tuple(tensor.shape))
    files = _divided({name: _num_bytes(*shape) for name, shape in shapes.items()}, max_file_bytes)
    checksums: dict[str, int] = {}
    for file, held in files.items():
        with durable_stream(folder / file) as stream:
            of_file = {name: shapes[name] for name in held}
            checksums |= write_tensors(stream, of_file, _reader(weights, shapes), {"format": "pt"})
    total = sum(_num_bytes(*shape) for shape in shapes.values())
    if len(files) > 1:
        weight_map = {name: file for file, held in files.items() for name in held}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_durably(folder / WEIGHTS_INDEX, _json(index))
    described = _with_assets_as_files(checkpoint[description.KEY], path, folder)
    config = {
        description.KEY: described,
        "global_step": int(checkpoint.get("global_step", 0)),
        "files": list(files),
        "tied": tied,
        "crc32": checksums,
    }
    write_durably(folder / EXPORTED, _json(config))
    return Exported(len(files), len(shapes), total)


def load(folder: Path) -> dict[str, Any]:
    """An exported folder as a checkpoint without state of training: "state_dict" and the description.

    Args:
        folder: as `export` wrote it.
    Raises:
        CheckpointError: if a file is missing or damaged.
    """
    try:
        config = json.loads((folder / EXPORTED).read_bytes())
        described, files = config[description.KEY], [_inside(folder, file) for file in config["files"]]
        for modality in described["modalities"]:
            modality["assets"] = {
                name: torch.frombuffer(bytearray(_inside(folder, file).read_bytes()), dtype=torch.uint8)
                for name, file in modality["assets"].items()
            }
        state: dict[str, Tensor] = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                state |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
        for name, crc32 in config["crc32"].items():
            if zlib.crc32(bytes_of(state[name])) != crc32:
                raise CheckpointError(
                    f"{folder}: damaged, the tensor {name} is not what was written (checksum)"
                )
        state |= {name: state[same] for name, same in config["tied"].items()}
        return {"global_step": config["global_step"], description.KEY: described, "state_dict": state}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({error}); export it again") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: its {EXPORTED} is damaged ({error!r}); export it again") from error


def _divided(sizes: Mapping[str, int], max_file_bytes: float) -> dict[str, list[str]]:
    """Which file holds which tensors, in their order."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > max_file_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {
        f"model-{number:05}-of-{len(groups):05}.safetensors": group
        for number, group in enumerate(groups, start=1)
    }


def _reader(
    weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
) -> Callable[[str], Tensor]:
    return lambda name: weights[name].to(shapes[name][0])


def _with_assets_as_files(described: Mapping[str, Any], path: Path, folder: Path) -> dict[str, Any]:
    """The description, its assets written to files and replaced by their names."""
    if described.get("format") != description.FORMAT:
        raise CheckpointError(
            f"{path}: format {described.get('format')}, this version reads {description.FORMAT}: install the "
            "version that wrote it"
        )
    modalities = []
    for number, modality in enumerate(described["modalities"]):
        place = f"assets/{number}-{modality['class_path'].rpartition('.')[2]}"
        files = {}
        for name, content in modality["assets"].items():
            files[name] = f"{place}/{name}"
            _inside(folder, files[name]).parent.mkdir(parents=True, exist_ok=True)
            write_durably(folder / files[name], bytes(content.numpy()))
        modalities.append({**modality, "assets": files})
    return {**described, "modalities": modalities}


def _inside(folder: Path, file: str) -> Path:
    """A file of the folder; its name comes out of a file, and must not lead elsewhere."""
    path = folder / file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{folder}: it names the file '{file}', which is not in it")
    return path


def _num_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * torch.Size(shape).numel()


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode()
