"""Lightning callbacks that log, score and save results. Recipes name them by `class_path`."""

from callbacks.correspondence_maps import CorrespondenceMaps
from callbacks.ema import TrainableEMA
from callbacks.evaluation_report import EvaluationReport
from callbacks.history_csv import MetricsCSV
from callbacks.image_grid import ImageGrid
from callbacks.last_checkpoint import LastCheckpoint
from callbacks.loss_guard import LossGuard
from callbacks.prediction_writer import PredictionWriter
from callbacks.throughput import ProgressBar, Throughput

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
