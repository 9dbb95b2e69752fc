"""`watch`: an episode as a model sees it; `generate`: how a model expects it to go on."""
