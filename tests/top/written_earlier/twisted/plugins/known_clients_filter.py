"""What `twist smtpguard --ip-filter` finds. This folder has no __init__.py: it is Twisted's."""

from known_clients import KnownClientsFactory

known_clients = KnownClientsFactory()
