"""What runs leave to look at: metrics, figures, films, and the page that puts them together."""
