"""Self-regulation: figures, policies and per-neuron plasticity; torch only, no Lightning."""

from onn_lightning.regulation.vitals import Vitals

__all__ = ["Vitals"]
