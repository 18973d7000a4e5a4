"""The IP filters that come with the guard. They know neither sessions nor transports."""
