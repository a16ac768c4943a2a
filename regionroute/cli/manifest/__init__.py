"""``regionroute manifest``."""
