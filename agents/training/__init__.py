"""`train-policy` and `evaluate`: settings, environments, the loop around SB3's, files of a run."""
