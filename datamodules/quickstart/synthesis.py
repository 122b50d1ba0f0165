"""Speaks a list of clips with eSpeak NG; run as a program of its own.

Notable:
- A fault inside the C library would take its process with it, so `speech.py` runs this file as a
  child: a crash becomes an exit status. It therefore imports nothing of this package.
- The library is loaded by its path out of the unpacked archive, with the data folder beside it.
- The library draws random numbers for breath and flutter; with a fixed seed the same request gives
  the same samples on the same machine.
- Clips are trimmed to the sound, brought to one peak level (some voices are recorded at a tenth of
  the level of others, some near the limit), resampled, and written as 16-bit mono WAV.

Usage: python synthesis.py REQUEST.json, the request being
`{"library": path, "data": path, "clips": [{"path", "voice", "text", "rate", "pitch"}, ...]}`
with the speaking rate in words per minute and the pitch in 0..100.
Source: the interface in eSpeak NG's `speak_lib.h`.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000
PEAK = 0.7
SILENCE = 0.01
"""Fraction of the peak below which the ends of a clip count as silent."""
MARGIN_S = 0.02
SHORTEST_S, LONGEST_S = 0.1, 1.0
SEED = 1

# Values of speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_PARAMETER_RATE, _PARAMETER_PITCH = 1, 3
_POSITION_CHARACTER = 1
_CHARACTERS_UTF8 = 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Synthesiser:
    """eSpeak NG in this process.

    Args:
        library: path of the shared library.
        data: path of its `espeak-ng-data` folder.
    Raises:
        OSError: if the library does not load or does not start.
    """

    def __init__(self, library: str, data: str) -> None:
        self._library = ctypes.CDLL(library)
        self._library.espeak_Synth.argtypes = (
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int),
            *(ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p),
        )
        self.rate: int = self._library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data.encode(), 0)
        if self.rate <= 0:
            raise OSError(f"eSpeak NG does not start with the data in {data} (status {self.rate})")
        self._library.espeak_ng_SetRandSeed.argtypes = (ctypes.c_long,)
        self._library.espeak_ng_SetRandSeed(SEED)
        self._chunks: list[np.ndarray] = []
        self._callback = _CALLBACK(self._receive)  # kept: the library holds only its address
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).astype(np.float32) / 32768.0)
        return 0

    def speak(self, text: str, voice: str, rate: int, pitch: int) -> np.ndarray:
        """Samples [n] float32 at `self.rate`.

        Args:
            text: what to say.
            voice: a language and a variant, for example `en-us+f3`.
            rate: words per minute.
            pitch: 0..100, 50 being the voice's own.
        Raises:
            ValueError: if the voice does not exist or nothing is spoken.
        """
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice '{voice}'")
        self._library.espeak_SetParameter(_PARAMETER_RATE, rate, 0)
        self._library.espeak_SetParameter(_PARAMETER_PITCH, pitch, 0)
        self._chunks.clear()
        raw = text.encode()
        status = self._library.espeak_Synth(
            raw, len(raw) + 1, 0, _POSITION_CHARACTER, 0, _CHARACTERS_UTF8, None, None
        )
        if status != 0 or not self._chunks:
            raise ValueError(f"eSpeak NG says nothing for '{text}' with voice '{voice}' (status {status})")
        return np.concatenate(self._chunks)


def finish(samples: np.ndarray, rate: int) -> np.ndarray:
    """Trim, level and resample one clip: [n] at `rate` -> [m] at 16 kHz, peak 0.7.

    Raises:
        ValueError: if the clip is silent, or shorter or longer than a spoken word.
    """
    peak = float(np.abs(samples).max(initial=0.0))
    if peak == 0.0:
        raise ValueError("silent")
    loud = np.flatnonzero(np.abs(samples) > SILENCE * peak)
    margin = round(MARGIN_S * rate)
    trimmed = samples[max(0, loud[0] - margin) : loud[-1] + 1 + margin]
    seconds = len(trimmed) / rate
    if not SHORTEST_S <= seconds <= LONGEST_S:
        raise ValueError(f"{seconds:.2f} s of sound, expected {SHORTEST_S} to {LONGEST_S} s")
    resampled = np.asarray(soxr.resample(trimmed, rate, SAMPLE_RATE))
    return np.asarray(resampled * (PEAK / np.abs(resampled).max()))


def main(request_path: str) -> None:
    """Speak every clip of a request; stops with a message at the first that fails."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    try:
        synthesiser = Synthesiser(request["library"], request["data"])
    except OSError as error:
        sys.exit(f"the speech library cannot be loaded: {error}")
    for clip in request["clips"]:
        try:
            samples = synthesiser.speak(clip["text"], clip["voice"], clip["rate"], clip["pitch"])
            soundfile.write(clip["path"], finish(samples, synthesiser.rate), SAMPLE_RATE, subtype="PCM_16")
        except ValueError as error:
            sys.exit(f"'{clip['text']}' in voice {clip['voice']}, rate {clip['rate']}: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
