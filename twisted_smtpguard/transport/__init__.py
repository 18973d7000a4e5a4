"""The host of the engine on Twisted: factory, protocol, output, deadlines, TLS, listeners."""
