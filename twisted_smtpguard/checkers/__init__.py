"""Authentication: the checkers that `--auth` names, and the calls of checkers of twisted.cred."""
