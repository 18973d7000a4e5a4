"""URLs of Redis servers: what each part means, and one sentence for each mistake, without a password."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from twisted_smtpguard.counters.redisurl import Login, RedisServer, redis_servers, shows_password

LOCAL = (("127.0.0.1", 6379),)


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("redis://127.0.0.1", RedisServer(hosts=LOCAL)),
        ("redis://127.0.0.1:6380/3", RedisServer(hosts=(("127.0.0.1", 6380),), database=3)),
        ("redis://127.0.0.1/?prefix=mx1", RedisServer(hosts=LOCAL, prefix="mx1")),
        ("redis://[2001:db8::1]:7000", RedisServer(hosts=(("2001:db8::1", 7000),))),
        ("redis://:p%2Fw@127.0.0.1", RedisServer(hosts=LOCAL, login=Login("", "p/w"))),
        ("redis://me:p:%40%C3%A9@127.0.0.1", RedisServer(hosts=LOCAL, login=Login("me", "p:@é"))),
        (
            "rediss://127.0.0.1?ca=/ca.pem&cert=/own.pem",
            RedisServer(hosts=LOCAL, tls=True, ca="/ca.pem", cert="/own.pem"),
        ),
        ("redis+unix:///run/redis/s.sock", RedisServer(path="/run/redis/s.sock")),
        (
            "unix://:pw@/run/a%20b?db=2&prefix=x",
            RedisServer(path="/run/a b", database=2, prefix="x", login=Login("", "pw")),
        ),
        (
            "redis+sentinel://redis:26380,b/mymaster/1",
            RedisServer(hosts=(("redis", 26380), ("b", 26379)), master="mymaster", database=1),
        ),
        (
            "rediss+sentinel://me:pw@a/mymaster?sentinel-user=su&sentinel-password=spw",
            RedisServer(
                hosts=(("a", 26379),),
                master="mymaster",
                tls=True,
                login=Login("me", "pw"),
                sentinel_login=Login("su", "spw"),
            ),
        ),
    ],
)
def test_each_part_of_a_url_means_something(url: str, server: RedisServer) -> None:
    assert redis_servers(url)() == [server]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://me:secret@[2001:db8::1]/4?prefix=x", "redis://[2001:db8::1]:6379/4"),
        ("redis+unix://:secret@/run/s?db=1", "redis+unix:///run/s?db=1"),
        ("rediss+sentinel://:secret@a,b:1/mx", "rediss+sentinel://a:26379,b:1/mx/0"),
    ],
)
def test_the_name_of_a_server_is_for_the_log(url: str, name: str) -> None:
    (server,) = redis_servers(url)()
    assert server.name == name
    assert "secret" not in repr(server)


def test_several_urls_stand_after_each_other() -> None:
    servers = redis_servers("redis://a,rediss://b/1,redis+sentinel://c,d/mx,unix:///e")()
    assert [server.name for server in servers] == [
        "redis://a:6379/0",
        "rediss://b:6379/1",
        "redis+sentinel://c:26379,d:26379/mx/0",
        "redis+unix:///e?db=0",
    ]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "a URL that begins with redis://"),
        ("localhost:6379", "a URL that begins with redis://"),
        ("http://:secret@h", "a URL that begins with redis://"),
        ("redis:/h", "a URL that begins with redis://"),
        ("redis://", "HOST or HOST:6379 is expected"),
        ("redis://h:port", "HOST or HOST:6379 is expected"),
        ("redis://h,i", "HOST or HOST:6379 is expected"),
        ("redis://2001:db8::1", "HOST or HOST:6379 is expected"),
        ("redis://[2001:db8::1", "redis://[2001:db8::1]:6379"),
        ("redis://h:0", "a port is a number from 1 to 65535"),
        ("redis://h:65536", "a port is a number from 1 to 65535"),
        ("redis://h/x", "the database is a number"),
        ("redis://h/0/1", "the database is a number"),
        ("redis+unix:///s?db=x", "the database is a number"),
        ("redis+unix://run/s", "three slashes"),
        ("redis+unix://", "three slashes"),
        ("redis+sentinel://h", "the name of the master"),
        ("redis+sentinel://h/a/b", "the database is a number"),
        ("redis+sentinel:///mx", "HOST or HOST:26379 is expected"),
        ("redis://secret@h", "a password is expected, as :PASSWORD@ or USER:PASSWORD@"),
        ("redis://secret:@h", "a password is expected, as :PASSWORD@ or USER:PASSWORD@"),
        ("redis://:secret/secret@h", "/ is %2F"),
        ("redis://:secret?secret@h", "? is %3F"),
        ("redis://:secret#secret@h", "# is written %23"),
        ("redis://:secret secret@h", "a blank is written %20"),
        ("redis://:secretü@h", "a character that is not ASCII"),
        ("redis://:secret%FF@h", "what is written with % must be UTF-8"),
        ("redis://:secret@[h", "redis://[2001:db8::1]:6379"),
        ("redis://h?ca=/x", "only prefix= may stand"),
        ("rediss://h?secret", "only prefix=, ca=, cert= may stand"),
        ("redis://h?prefix=", "prefix= must have one value"),
        ("redis://h?prefix=a&prefix=b", "prefix= must have one value"),
        ("redis://h?prefix=a%20b", "prefix= must be 1 to 64 printable characters"),
        ("redis+sentinel://h/m?sentinel-user=secret", "sentinel-user= needs sentinel-password= too"),
        ("redis://h,redis+file:/secret", "HOST or HOST:6379 is expected"),
        ("redis+file:", "there is no path after redis+file:"),
        ("redis+file:/does/not/exist", "/does/not/exist cannot be read: No such file or directory"),
        ("redis+file:/", "/ cannot be read: Is a directory"),
    ],
)
def test_a_mistake_is_one_sentence_without_the_password(url: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        redis_servers(url)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    shown = "".join(traceback.format_exception_only(caught.type, caught.value))
    assert "secret" not in shown


def written(directory: Path, text: str | bytes, mode: int = 0o640) -> str:
    path = directory / "urls"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return f"redis+file:{path}"


def test_a_file_has_urls_and_comments_and_is_read_again_each_time(tmp_path: Path) -> None:
    servers = redis_servers(
        written(tmp_path, "\ufeff# of the mail cluster\r\n\n redis://:one@a\nredis://b,redis://c \n")
    )
    assert [server.hosts[0][0] for server in servers()] == ["a", "b", "c"]
    assert servers()[0].login.password == "one"
    written(tmp_path, "redis://:two@a\n")
    assert [server.login.password for server in servers()] == ["two"]
    written(tmp_path, "redis://:secret@a/x\n")
    with pytest.raises(ValueError, match="urls: the database is a number"):
        servers()


@pytest.mark.parametrize(
    ("text", "mode", "sentence"),
    [
        ("redis://a", 0o644, "is open to all users of this host: chmod o= "),
        ("redis://a", 0o602, "is open to all users of this host: chmod o= "),
        ("# nothing\n", 0o600, "has no URL, such as "),
        ("redis+file:/x", 0o600, "a URL that begins with redis://"),
        (b"redis://:secret\xff@a", 0o600, "is not UTF-8 text"),
        ("redis://a\n" * 10_000, 0o600, "is longer than 65536 octets"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(
    tmp_path: Path, text: str | bytes, mode: int, sentence: str
) -> None:
    with pytest.raises(ValueError) as caught:
        redis_servers(written(tmp_path, text, mode))
    assert sentence in str(caught.value)
    assert "urls" in str(caught.value)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://a,redis://b", False),
        ("redis://a,redis://:secret@b", True),
        ("redis+sentinel://a/m?sentinel-password=secret", True),
        ("redis+file:/does/not/exist", False),
    ],
)
def test_it_is_known_whether_a_command_line_would_show_a_password(url: str, shown: bool) -> None:
    assert shows_password(url) is shown
