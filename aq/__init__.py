"""Additive quantization: formats, encoder, quantized layers, tuning, plans, and their files."""
