"""Talk nonsense to the guard of the tutorial from 127.0.0.2, and show what it says until it hangs up."""

import socket

with socket.create_connection(("127.0.0.1", 2525), timeout=30, source_address=("127.0.0.2", 0)) as client:
    replies = client.makefile("rb")
    print(replies.readline().decode().rstrip())
    client.sendall(b"GIVE ME MAIL\r\n" * 30)
    for reply in replies:
        print(reply.decode().rstrip())
