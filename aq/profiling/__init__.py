"""Time, memory and operations of layers and of models, and the quantizer's own benchmark."""
