"""Callbacks that monitor and save a run."""

from codetr.training.callbacks.checkpoints import LastCheckpoint
from codetr.training.callbacks.curves import CurvePlot
from codetr.training.callbacks.optimization import GradientNorm, LearningRates
from codetr.training.callbacks.progress import EpochLine, progress_bar
from codetr.training.callbacks.results import BestResult
from codetr.training.callbacks.safe_points import SafePoints
from codetr.training.callbacks.speed import Throughput
