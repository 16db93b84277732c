"""Lightning callbacks that show, score and save what the editor does; recipes name them by class path."""

from .correspondence_maps import CorrespondenceMaps
from .ema import TrainableEMA
from .evaluation_report import EvaluationReport
from .history_csv import MetricsCSV
from .image_grid import ImageGrid
from .last_checkpoint import LastCheckpoint
from .loss_guard import LossGuard
from .prediction_writer import PredictionWriter
from .throughput import ProgressBar, Throughput

__all__ = [
    "CorrespondenceMaps",
    "EvaluationReport",
    "ImageGrid",
    "LastCheckpoint",
    "LossGuard",
    "MetricsCSV",
    "PredictionWriter",
    "ProgressBar",
    "Throughput",
    "TrainableEMA",
]
