"""Train sparse autoencoders and their random baselines, measure both, and compare them with the paper."""

__version__ = "0.1.0"
