"""How octets move: the connection's protocol, its output, its deadlines, and the factory of connections."""
