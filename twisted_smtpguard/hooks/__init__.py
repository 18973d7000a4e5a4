"""Hooks that answer later, and hooks that raise."""
