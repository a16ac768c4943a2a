"""Attention that starts out on the named object: settings, images and losses of its training."""
