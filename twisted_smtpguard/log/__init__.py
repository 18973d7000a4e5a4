"""The log and the statistics: the events, their form, and how many of them are logged."""
