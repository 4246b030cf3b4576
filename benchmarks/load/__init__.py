"""What holds under load: many runs with faults in them, an hour, a web service."""
