"""What a policy is made of: algorithms, the features extractor, the frozen Perceiver in it."""
