"""What SMTP says: grammar, commands, replies, sessions and message data. Knows no transport."""
