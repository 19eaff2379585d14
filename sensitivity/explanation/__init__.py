"""What the fitted predictor says about layers, with intervals."""
