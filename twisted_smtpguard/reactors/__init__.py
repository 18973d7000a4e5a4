"""The reactor of `twist --reactor=uvloop`, and the TCP transports that it makes."""
