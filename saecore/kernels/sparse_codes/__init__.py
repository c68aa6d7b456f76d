"""Decoding and gradients that touch active latents only. The definition is ``training/loss.py`` under autograd."""
