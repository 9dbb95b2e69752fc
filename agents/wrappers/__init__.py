"""Environments of Stable-Baselines3 whose observations are contexts, or principal components of frames."""
