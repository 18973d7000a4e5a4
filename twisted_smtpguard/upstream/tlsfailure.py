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
    # Late: whoever has no TLS need not load it.
    from OpenSSL import SSL  # noqa: PLC0415

    problem = _certificate_problem(SSL, transport)
    if problem:
        return f"its certificate is not accepted: {problem}"
    queue = error.args[0] if error is not None and error.args else None
    reasons = [str(entry[-1]) for entry in queue if entry] if isinstance(queue, list) else [str(error)]
    return ", ".join(reasons) or type(error).__name__


def _certificate_problem(openssl: Any, transport: Any) -> str:
    """OpenSSL's own words, such as "certificate has expired". pyOpenSSL has no name for them that is its users'."""
    try:
        code = openssl._lib.SSL_get_verify_result(transport.getHandle()._ssl)
        words: bytes = openssl._ffi.string(openssl._lib.X509_verify_cert_error_string(code))
    except AttributeError:
        return ""
    return words.decode("ascii", "backslashreplace") if code else ""
