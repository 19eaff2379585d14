"""What other models teach about the next: properties of layers, a corpus of measured layers, and the learnt prior of the additive model."""
