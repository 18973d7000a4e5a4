"""The URLs of Redis servers: how they are read, and what is said about mistakes. Pure but for the files that they name.

    redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE][?prefix=WORD]
    rediss://…[?ca=FILE][&cert=FILE]                     TLS
    redis+unix://[[USER]:PASSWORD@]/PATH[?db=DATABASE]   also unix://
    redis+sentinel://[[USER]:PASSWORD@]HOST[:PORT],…/NAME[/DATABASE][?sentinel-password=WORD]
                                                         the master that Sentinel knows; also rediss+sentinel
    redis+file:PATH                                      a file with one of these on each line

No message has a password in it, nor a part of the URL in which one may stand.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from urllib.parse import SplitResult, unquote, urlsplit

import attrs

from twisted_smtpguard.inputs.regularfile import open_regular

REDIS_PORT, SENTINEL_PORT = 6379, 26379

_FROM_FILE = "redis+file:"
_MOST_OCTETS = 65536
_BETWEEN = re.compile(r",(?=[a-z+]+://)")
"""Between two URLs. The comma between two hosts of Sentinel is another."""
_SCHEMES = ("redis", "rediss", "redis+unix", "unix", "redis+sentinel", "rediss+sentinel")
_FORMS = "redis://, rediss://, redis+unix://, redis+sentinel://, rediss+sentinel:// or redis+file:"
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_ESCAPES = "in a password # is written %23, / is %2F, : is %3A, ? is %3F, @ is %40 and % is %25"
_PREFIX = re.compile(r"[!-~]{1,64}")
_MASTER = re.compile(r"[A-Za-z0-9._-]{1,255}")


@attrs.frozen
class Login:
    """Who the guard is to a server."""

    user: str = ""
    """The user of an ACL; "" if the server has only a password."""
    password: str = attrs.field(default="", repr=False)
    """"": the server asks for none."""


@attrs.frozen(kw_only=True)
class RedisServer:
    """A Redis server as its URL describes it."""

    hosts: tuple[tuple[str, int], ...] = ()
    """Its host and port; of Sentinel all of its hosts and ports."""
    path: str = ""
    """Its UNIX socket, instead of hosts."""
    master: str = ""
    """The name by which Sentinel knows it; "" if it is connected to directly."""
    tls: bool = False
    ca: str = ""
    """A PEM file with the certificates to trust; "": those of the system."""
    cert: str = ""
    """A PEM file with the guard's certificate and its key; "": it has none."""
    login: Login = Login()
    sentinel_login: Login = Login()
    database: int = 0
    prefix: str = "smtpguard"
    """What every key begins with, before a colon."""

    @property
    def name(self) -> str:
        """The server for the log: its URL without user, password and prefix."""
        if self.path:
            return f"redis+unix://{self.path}?db={self.database}"
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        scheme = "rediss" if self.tls else "redis"
        if self.master:
            return f"{scheme}+sentinel://{hosts}/{self.master}/{self.database}"
        return f"{scheme}://{hosts}/{self.database}"


def redis_servers(text: str) -> Callable[[], list[RedisServer]]:
    """The function that answers the servers in `text`, one URL or several after commas, or `redis+file:PATH`. The file
    is read again at each call, so that a password in it can be changed.

    ValueError says in one sentence what is wrong with `text`, or with the file now.
    """
    if text.startswith(_FROM_FILE):
        path = os.path.expanduser(text.removeprefix(_FROM_FILE))  # noqa: PTH111 - "" stays ""
        _servers_in_file(path)
        return lambda: _servers_in_file(path)
    servers = [_server(url) for url in _BETWEEN.split(text)]
    return lambda: servers


def shows_password(text: str) -> bool:
    """Whether there is a password in `text`, which `redis_servers()` has accepted. On a command line every user of the
    host can read it."""
    if text.startswith(_FROM_FILE):
        return False
    return any(each.login.password or each.sentinel_login.password for each in redis_servers(text)())


def _servers_in_file(path: str) -> list[RedisServer]:
    if not path:
        raise ValueError("there is no path after redis+file:")
    try:
        with open_regular(path) as file:
            mode = os.fstat(file.fileno()).st_mode
            octets = file.read(_MOST_OCTETS + 1)
    except (OSError, ValueError) as error:
        # ValueError: there is a NUL in the path.
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ValueError(f"{path} is open to all users of this host: chmod o= {path}")
    if len(octets) > _MOST_OCTETS:
        raise ValueError(f"{path} is longer than {_MOST_OCTETS} octets")
    try:
        lines = [line.strip() for line in octets.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError:
        # Without its cause, which has the octets.
        raise ValueError(f"{path} is not UTF-8 text") from None
    try:
        servers = [_server(url) for line in lines if line and line[0] != "#" for url in _BETWEEN.split(line)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not servers:
        raise ValueError(f"{path} has no URL, such as redis://:PASSWORD@redis.example.org/0")
    return servers


def _server(url: str) -> RedisServer:
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError(f"a URL that begins with {_FORMS} is expected")
    parts = _parts(url)
    values = _values(parts.query, scheme)
    userinfo, at, where = parts.netloc.rpartition("@")
    hosts: tuple[tuple[str, int], ...] = ()
    path = master = ""
    # After the host: the name of the master, and the database.
    database, *more = parts.path.removeprefix("/").split("/")
    if scheme.endswith("unix"):
        path, database, more = _decoded(parts.path), values.get("db", ""), []
        if where or path in ("", "/"):
            raise ValueError(
                "a UNIX socket is written with three slashes, as redis+unix:///run/redis/redis.sock"
            )
    elif scheme.endswith("sentinel"):
        master, database, more = database, "".join(more[:1]), more[1:]
        hosts = tuple(_host(each, SENTINEL_PORT) for each in where.split(","))
        if _MASTER.fullmatch(master) is None:
            raise ValueError(f"the name of the master is expected, as {scheme}://HOST:26379/NAME/0")
    else:
        hosts = (_host(where, REDIS_PORT),)
    if more or not re.fullmatch(r"[0-9]{0,5}", database):
        raise ValueError("the database is a number, as redis://HOST/0 or redis+unix:///PATH?db=0")
    return RedisServer(
        hosts=hosts,
        path=path,
        master=master,
        tls=scheme.startswith("rediss"),
        ca=values.get("ca", ""),
        cert=values.get("cert", ""),
        login=_login(userinfo) if at else Login(),
        sentinel_login=Login(values.get("sentinel-user", ""), values.get("sentinel-password", "")),
        database=int(database or 0),
        prefix=values.get("prefix", "smtpguard"),
    )


def _parts(url: str) -> SplitResult:
    if re.search(r"[^!-~]", url):
        raise ValueError("there is a blank, or a character that is not ASCII; a blank is written %20")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("an IPv6 address is written in brackets, as redis://[2001:db8::1]:6379") from None
    if "#" in url or "@" in parts.path + parts.query:
        raise ValueError(_ESCAPES)
    return parts


def _values(query: str, scheme: str) -> dict[str, str]:
    """What stands after the question mark."""
    known = ["prefix"]
    if scheme.endswith("unix"):
        known += ["db"]
    if scheme.startswith("rediss"):
        known += ["ca", "cert"]
    if scheme.endswith("sentinel"):
        known += ["sentinel-user", "sentinel-password"]
    values: dict[str, str] = {}
    for pair in query.split("&") if query else []:
        key, _, value = pair.partition("=")
        if key not in known:
            # It is not shown, as it may be a part of a password.
            raise ValueError(f"after the ? of a {scheme} URL only {'=, '.join(known)}= may stand")
        if not value or key in values:
            raise ValueError(f"{key}= must have one value")
        values[key] = _decoded(value)
    if _PREFIX.fullmatch(values.get("prefix", "x")) is None:
        raise ValueError("prefix= must be 1 to 64 printable characters of ASCII without blanks")
    if "sentinel-user" in values and "sentinel-password" not in values:
        raise ValueError("sentinel-user= needs sentinel-password= too")
    return values


def _login(userinfo: str) -> Login:
    user, colon, password = userinfo.partition(":")
    if not colon or not password:
        raise ValueError("before the @ a password is expected, as :PASSWORD@ or USER:PASSWORD@")
    return Login(_decoded(user), _decoded(password))


def _host(text: str, port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is None:
        raise ValueError(
            f"after the scheme, and the @ if there is one, HOST or HOST:{port} is expected; {_ESCAPES}"
        )
    number = int(match[3] or port)
    if not 0 < number < 65536:
        raise ValueError("a port is a number from 1 to 65535")
    return match[1] or match[2], number


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        # Without its cause, which has the text.
        raise ValueError("what is written with % must be UTF-8") from None
