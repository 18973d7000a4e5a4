"""Hold five connections to the guard of the tutorial at once, all from 127.0.0.2, and show what each is told."""

import socket

crowd = [
    socket.create_connection(("127.0.0.1", 2525), timeout=30, source_address=("127.0.0.2", 0))
    for _ in range(5)
]
for client in crowd:
    print(client.makefile("rb").readline().decode().rstrip())
