"""Vector quantisation: codebook, lookup, neighbours and QPM."""
