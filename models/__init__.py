"""Subjects: a denoiser and how to sample it."""
