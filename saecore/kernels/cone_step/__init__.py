"""One optimiser step on unit decoder rows: Adam, the gradient's parallel part removed, unit norm, cone projection."""
