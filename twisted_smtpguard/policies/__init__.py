"""The policies that come with the guard: those of a policy server. They know neither sessions nor transports."""
