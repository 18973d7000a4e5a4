"""The mail server behind the guard: how it is reached, what is said to it, and what its answers mean."""
