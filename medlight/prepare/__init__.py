"""Volumes to prepared cases: sources, splits, preparation, normalisers, store. Nothing here imports torch."""

from medlight.prepare.case import ArrayItem, BadCase, Box, Case, CaseList, FrameItem, Label
from medlight.prepare.frames import FramesAsSamples
from medlight.prepare.manifest import Manifest
from medlight.prepare.normalise import NamedWindow, Normaliser, Percentile, Scaling, Window, ZScore, normaliser_from
from medlight.prepare.paths import data_path
from medlight.prepare.preparation import Preparation, PreparedArrays
from medlight.prepare.prepared import PreparedCase, cases_with
from medlight.prepare.resample import restore, to_grid, to_spacing
from medlight.prepare.sources import CaseSource, Decathlon, ImageFolders, MedMNIST
from medlight.prepare.splits import GivenSplit, KFold, RandomSplit, Split, SplitFile, Splitter
from medlight.prepare.statistics import statistics
from medlight.prepare.store import PreparedSet, Store

__all__ = [
    "ArrayItem",
    "BadCase",
    "Box",
    "Case",
    "CaseList",
    "CaseSource",
    "Decathlon",
    "FrameItem",
    "FramesAsSamples",
    "GivenSplit",
    "ImageFolders",
    "KFold",
    "Label",
    "Manifest",
    "MedMNIST",
    "NamedWindow",
    "Normaliser",
    "Percentile",
    "Preparation",
    "PreparedArrays",
    "PreparedCase",
    "PreparedSet",
    "RandomSplit",
    "Scaling",
    "Split",
    "SplitFile",
    "Splitter",
    "Store",
    "Window",
    "ZScore",
    "cases_with",
    "data_path",
    "normaliser_from",
    "restore",
    "statistics",
    "to_grid",
    "to_spacing",
]
