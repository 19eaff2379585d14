"""Tasks, artifacts, journals and executors: how expensive work is run, kept and found again."""
