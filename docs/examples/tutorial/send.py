"""Send one message to the guard of the tutorial, as an honest client does."""

import smtplib

MESSAGE = b"Subject: Hello\r\n\r\nWorld\r\n"

with smtplib.SMTP("127.0.0.1", 2525, timeout=30) as client:
    client.ehlo("honest.example")
    client.mail("me@example.org")
    client.rcpt("you@example.org")
    code, text = client.data(MESSAGE)
    print(code, text.decode())
