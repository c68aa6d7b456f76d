"""What an SAE reached: small accumulators and pure functions, each with its formula."""
