"""Tuning of what a plan stores, without data, against the full-precision denoiser's own answers."""
