"""Why TLS with the upstream server failed, in words that an operator can act on."""

from __future__ import annotations

from typing import Any


def tls_failure(error: BaseException | None, transport: Any) -> str:
    """The cause of a TLS failure. `error` is what the connection ended with; "": it was not a TLS failure.

    OpenSSL's judgement of the certificate comes from `transport`, since `error` says only that it was not accepted.
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
    """OpenSSL's own words, such as "certificate has expired". The certificate is verified again here: pyOpenSSL has no
    public name for the result of the handshake, and Twisted uses the callback for its check of the server's name."""
    from OpenSSL import crypto  # noqa: PLC0415

    connection = transport.getHandle()
    # Without TLS the handle is a plain socket, which has no such method.
    shown: list[Any] = getattr(connection, "get_peer_cert_chain", list)() or []
    if not shown:
        return ""
    store = connection.get_context().get_cert_store()
    try:
        crypto.X509StoreContext(store, shown[0], shown[1:]).verify_certificate()
    except crypto.X509StoreContextError as error:
        return str(error)
    return ""
