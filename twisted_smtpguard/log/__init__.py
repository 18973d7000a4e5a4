"""What is logged and counted: events, their form, their budget."""
