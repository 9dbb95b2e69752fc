"""`benchmark`: tasks, methods, results and the page of DMControl-100k."""
