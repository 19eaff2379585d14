"""Products of activations with codes, and the dispatcher that chooses among them."""
