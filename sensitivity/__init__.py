"""What each layer can stand: fidelity metrics, probing, the predictor and its attributions."""
