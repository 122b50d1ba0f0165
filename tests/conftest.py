"""Settings of the whole suite: property tests without a wall-clock deadline, repeatable in CI."""

from __future__ import annotations

import os

from hypothesis import settings

# Runners share their cores; how long one example takes says nothing about the code.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
