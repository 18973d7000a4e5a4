"""Why TLS with the server behind failed, in words that an operator can act on."""

from __future__ import annotations

from typing import Any


def tls_failure(error: BaseException | None, transport: Any) -> str:
    """What `error`, with which a connection ended, says of its TLS. "": nothing, it ended otherwise.

    `transport` is asked what OpenSSL thinks of the certificate: the error says only that it was not accepted.
    """
    raised_by = type(error).__module__.partition(".")[0]
    if raised_by == "service_identity":
        return "its certificate is for another name"
    if raised_by != "OpenSSL":
        return ""
    problem = _certificate_problem(transport)
    if problem:
        return f"its certificate is not accepted: {problem}"
    queue = error.args[0] if error is not None and error.args else None
    reasons = [str(entry[-1]) for entry in queue if entry] if isinstance(queue, list) else [str(error)]
    return ", ".join(reasons) or type(error).__name__


def _certificate_problem(transport: Any) -> str:
    """OpenSSL's own words, such as "certificate has expired". It is asked again: what it said in the handshake has no
    public name in pyOpenSSL, and the callback for it is Twisted's, which looks at the server's name."""
    from OpenSSL import crypto  # noqa: PLC0415

    connection = transport.getHandle()
    # A socket where there was no TLS after all.
    shown: list[Any] = getattr(connection, "get_peer_cert_chain", list)() or []
    if not shown:
        return ""
    store = connection.get_context().get_cert_store()
    try:
        crypto.X509StoreContext(store, shown[0], shown[1:]).verify_certificate()
    except crypto.X509StoreContextError as error:
        return str(error)
    return ""
