"""Measuring plans: designs, the prober, its workers and file, and what is known of layers before any probe."""
