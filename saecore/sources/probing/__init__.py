"""Labelled texts for sparse probing: the embedded world's, SAEBench's eight data sets, or a local table."""

from saecore.sources.probing.atlas import atlas_sets
from saecore.sources.probing.base import Examples, LabelledSet, LabelledSetError, Task, divided, one_vs_rest, per_class
from saecore.sources.probing.hub import SAEBENCH, hub_set, hub_sets
from saecore.sources.probing.table import csv_set

__all__ = [
    "SAEBENCH",
    "Examples",
    "LabelledSet",
    "LabelledSetError",
    "Task",
    "atlas_sets",
    "csv_set",
    "divided",
    "hub_set",
    "hub_sets",
    "one_vs_rest",
    "per_class",
]
