"""What the transport knows of the other end, on systems that know less."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = """
import sys
for name in ("fcntl", "termios", "resource", "grp"):
    sys.modules[name] = None
from twisted_smtpguard.testing import Guard
client = Guard().greeted()
print(client.codes("MAIL FROM:<a@client.example>", "RCPT TO:<b@guard.example>", "DATA", "text", ".", "QUIT"))
"""


def test_a_guard_works_where_python_lacks_what_only_unix_has() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[250, 250, 354, 250, 221]\n", "")
