"""Training of tokenizer and Perceiver: settings, loop, checkpoints, adaptation to a policy's episodes."""
