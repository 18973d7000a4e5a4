"""TLS: certificates and keys from files, by name, and what Twisted leaves out of the layer."""
