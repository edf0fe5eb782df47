"""ONNX -> a TensorRT engine, by one builder for ``tensorrt`` 10.12 to 11 and TensorRT for RTX; and running it.

Networks are strongly typed: the precision is that of the ONNX graph (float16 by casts, INT8 by Q/DQ). What TensorRT
says between releases: explicit batch is the only mode (its flag is gone in 11), precision flags and calibrators are
gone in 11, a failed build is ``None`` and a logged line, never an exception. TensorRT for RTX builds without a GPU for
named compute capabilities.
"""

from medlight.deploy.tensorrt.build import GIB, Options, Profile, Shape, build
from medlight.deploy.tensorrt.engine import Engine, EngineSession, write_report
from medlight.deploy.tensorrt.info import EngineInfo, Fitting, Machine, fitting, load_or_rebuild
from medlight.deploy.tensorrt.package import Package, find, unavailable

__all__ = [
    "GIB",
    "Engine",
    "EngineInfo",
    "EngineSession",
    "Fitting",
    "Machine",
    "Options",
    "Package",
    "Profile",
    "Shape",
    "build",
    "find",
    "fitting",
    "load_or_rebuild",
    "unavailable",
    "write_report",
]
