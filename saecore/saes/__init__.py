"""Sparse autoencoders: one class, six architectures, baselines as constraints."""

from saecore.saes.base import SAE
from saecore.saes.build import build
from saecore.saes.checkpoint import CheckpointError, load, save

__all__ = ["SAE", "CheckpointError", "build", "load", "save"]
