"""Bases to edit with: one loader for Kontext folders, hub ids and the embedded nano."""
