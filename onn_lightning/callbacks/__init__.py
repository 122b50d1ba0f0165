"""Lightning callbacks: thin, optional, swappable."""

from onn_lightning.callbacks.broken_steps import SkipBrokenSteps
from onn_lightning.callbacks.compile_blocks import CompileBlocks
from onn_lightning.callbacks.dashboard import Dashboard
from onn_lightning.callbacks.emergency_pruning import EmergencyPruning
from onn_lightning.callbacks.graceful_stop import GracefulStop
from onn_lightning.callbacks.gradient_checkpointing import GradientCheckpointing
from onn_lightning.callbacks.growth import GrowOnPlateau
from onn_lightning.callbacks.loss_reweighting import LossReweighting
from onn_lightning.callbacks.loss_spikes import LossSpikes
from onn_lightning.callbacks.neuron_protection import NeuronProtection
from onn_lightning.callbacks.pi_monitor import PIMonitor
from onn_lightning.callbacks.plasticity import Plasticity
from onn_lightning.callbacks.progress_bar import RunProgressBar
from onn_lightning.callbacks.random_states import RandomStates
from onn_lightning.callbacks.rank_watchdog import RankWatchdog
from onn_lightning.callbacks.report import RunReport
from onn_lightning.callbacks.run_checkpoint import RunCheckpoint
from onn_lightning.callbacks.run_record import RunRecord
from onn_lightning.callbacks.throughput import Throughput

__all__ = [
    "CompileBlocks",
    "Dashboard",
    "EmergencyPruning",
    "GracefulStop",
    "GradientCheckpointing",
    "GrowOnPlateau",
    "LossReweighting",
    "LossSpikes",
    "NeuronProtection",
    "PIMonitor",
    "Plasticity",
    "RandomStates",
    "RankWatchdog",
    "RunCheckpoint",
    "RunProgressBar",
    "RunRecord",
    "RunReport",
    "SkipBrokenSteps",
    "Throughput",
]
