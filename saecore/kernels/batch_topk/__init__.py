"""Which codes an SAE keeps: per row (TopK), per group of rows, per batch (BatchTopK), or above a threshold."""
