"""The guard as a Twisted service: how it starts, reloads its data, drains and stops."""
