"""The pure state machine of one connection: octets and answers come in, effects go out through a port."""
