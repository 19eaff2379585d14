"""Adapters: how a kind of model is sampled. What its denoiser is asked on the way is recorded and asked again by models/trace.py."""
