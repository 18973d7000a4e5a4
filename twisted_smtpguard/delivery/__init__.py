"""The deliveries that come with the guard: they take the messages that it accepts."""
