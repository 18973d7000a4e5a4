"""Admission: IP filters, and the limits per client. It knows neither transports nor sessions."""
