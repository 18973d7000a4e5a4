"""The upstream server: how the guard connects to it, what it sends, and what the answers mean."""
