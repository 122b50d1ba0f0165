"""Self-regulation: figures, policies and rules; torch only, no Lightning."""

from onn_lightning.regulation.consolidation import ConsolidatingWeight
from onn_lightning.regulation.integrity import Integrity
from onn_lightning.regulation.modality_weights import FixedModalityWeights, IntegrityBalance, ModalityPolicy
from onn_lightning.regulation.novelty_response import NoveltyResponse
from onn_lightning.regulation.plasticity import FixedPlasticity, IntegrityPlasticity, PlasticityPolicy
from onn_lightning.regulation.plateau import Plateau
from onn_lightning.regulation.vitals import Vitals
from onn_lightning.regulation.weights import (
    ActivationTarget,
    FixedWeight,
    IntegrityWeight,
    LossSigmoidWeight,
    NegativeLogTauWeight,
    WeightPolicy,
)

__all__ = [
    "ActivationTarget",
    "ConsolidatingWeight",
    "FixedModalityWeights",
    "FixedPlasticity",
    "FixedWeight",
    "Integrity",
    "IntegrityBalance",
    "IntegrityPlasticity",
    "IntegrityWeight",
    "LossSigmoidWeight",
    "ModalityPolicy",
    "NegativeLogTauWeight",
    "NoveltyResponse",
    "PlasticityPolicy",
    "Plateau",
    "Vitals",
    "WeightPolicy",
]
