"""A guard as a service: it starts, reads its data again, drains and stops."""
