"""What contexts and tokens are trained on, one objective a file."""
