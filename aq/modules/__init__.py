"""Layers that compute with codes, and how diffusers loads them."""
