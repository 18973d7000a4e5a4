"""The guard as a service of Twisted: how it starts, reloads its data, drains and stops."""
