"""Calls of hooks, which are foreign code: answers that come later, exceptions, and work in threads."""
