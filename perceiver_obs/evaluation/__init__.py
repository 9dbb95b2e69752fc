"""What contexts carry: the probe and its baselines, predicted frames, generated futures."""
