"""Prints the mail for its mailboxes: twist mailroom --mailbox ADDRESS"""
