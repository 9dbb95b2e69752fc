"""`watch`: an episode as a model sees it."""
