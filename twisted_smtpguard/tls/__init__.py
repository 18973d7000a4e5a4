"""TLS: certificates and keys from files, by name if a client asks for one, and what Twisted's TLS layer lacks."""
