"""Where a message goes once it is clean: the deliveries that come with the guard."""
