"""How hooks are called: those that answer later, those that raise, and work in threads."""
