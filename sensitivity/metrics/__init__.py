"""How far images are from full precision's: metrics, extractors of features and references."""
