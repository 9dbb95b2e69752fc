"""Rollouts on disk: episodes, datasets, recording, and the clips that trainings draw from them."""
