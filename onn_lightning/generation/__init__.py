"""Answers: the text that a model writes after any interleaving of text, images and sound."""

from onn_lightning.generation.continuation import context_window, generate
from onn_lightning.generation.sampling import Sampling

__all__ = ["Sampling", "context_window", "generate"]
