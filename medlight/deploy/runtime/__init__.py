"""Prediction with a bundle: numpy and onnxruntime, no torch."""

from medlight.deploy.runtime.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor"]
