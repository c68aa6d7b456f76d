"""Decoding and gradients that touch active latents only."""
