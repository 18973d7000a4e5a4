"""The IP filters that come with the guard. They know no session and no wire."""
