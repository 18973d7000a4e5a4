"""Authentication: the checkers of `--auth`, and how a checker of twisted.cred is asked."""
