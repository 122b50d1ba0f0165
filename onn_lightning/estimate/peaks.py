"""Peaks of some GPUs, to be read without torch."""

from __future__ import annotations

PEAKS = {"h100": 989e12, "h200": 989e12, "a100": 312e12, "l40s": 362e12, "a10": 125e12}
"""FLOPs a second of dense bfloat16 products, after the maker's data sheets."""
