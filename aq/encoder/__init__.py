"""From a weight to codes, codebooks and scales: the steps of the encoder, in torch and in C++."""
