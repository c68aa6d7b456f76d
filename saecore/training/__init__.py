"""Training: many SAEs on one stream of samples, exactly resumable."""

from saecore.training.loop import DivergedError, Trainer, calibrate, shared_streams, start, train_many

__all__ = ["DivergedError", "Trainer", "calibrate", "shared_streams", "start", "train_many"]
