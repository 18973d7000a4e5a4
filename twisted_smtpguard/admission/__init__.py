"""Admission: the IP filters and the limits per client. This package knows neither transports nor sessions."""
