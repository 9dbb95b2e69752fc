"""What contexts carry: the probe and its baselines, and predicted frames."""
