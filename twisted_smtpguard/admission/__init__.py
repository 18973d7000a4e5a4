"""Who may come in: IP filters, and what each client may have and do. Knows no transport and no session."""
