"""Postfix as a server that takes every message and forgets it: `python postfix_server.py PORT`, as root.

It is an instance of its own, in the folder in which it is started, and touches nothing of the machine's. This process
becomes its master daemon. Its log goes into the file `log` there. See README.md for what it does with a message.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""

MAIN = """\
compatibility_level = 3.6
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
queue_directory = {here}/queue
data_directory = {here}/data
mail_owner = postfix
setgid_group = postdrop
maillog_file = {here}/log
maillog_file_prefixes = {here}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = guard.example
mydestination = guard.example
local_recipient_maps =
alias_maps =
alias_database =
# What it does with a message: it claims to have delivered it.
smtpd_end_of_data_restrictions = check_client_access static:DISCARD
# None of the other servers asks the DNS for a client's name.
smtpd_peername_lookup = no
# Clients are counted, those of this machine too, as the guard counts them, and no limit is reached.
smtpd_client_event_limit_exceptions =
# It would wait for a queue manager that never sees a message.
in_flow_delay = 0
"""


def main(port: int) -> None:
    here = Path.cwd()
    user = pwd.getpwnam("postfix")
    for name in ("etc", "queue", "data"):
        (here / name).mkdir()
    os.chown(here / "data", user.pw_uid, user.pw_gid)
    (here / "etc" / "main.cf").write_text(MAIN.format(here=here))
    (here / "etc" / "master.cf").write_text(MASTER.format(port=port))
    # It makes the folders of the queue.
    subprocess.run(["/usr/sbin/postfix", "-c", str(here / "etc"), "check"], check=True)
    os.execv("/usr/lib/postfix/sbin/master", ["master", "-c", str(here / "etc")])


main(int(sys.argv[1]))
