"""Prediction with a bundle: numpy and onnxruntime, no torch."""

from medlight.deploy.runtime.predictor import Prediction, Predictor
from medlight.deploy.runtime.sliding import sliding_window

__all__ = ["Prediction", "Predictor", "sliding_window"]
