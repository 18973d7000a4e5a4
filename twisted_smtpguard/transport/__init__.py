"""The engine on Twisted: octets, time, TLS, listeners."""
