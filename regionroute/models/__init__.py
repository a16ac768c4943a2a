"""Base models: one loader for folders, hub ids and the embedded bases."""
